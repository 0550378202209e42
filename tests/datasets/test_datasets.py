"""Each data set's original format, in small files written here, becomes the right questions and answers."""

from __future__ import annotations

import itertools
import json
import tarfile
import zipfile

import pytest

from rl_likelihood.datasets import DATASETS, countdown, numina_proof, splitting
from rl_likelihood.datasets.common import Location, Skipped
from rl_likelihood.errors import UserError
from rl_likelihood.grading import graders
from rl_likelihood.grading.countdown import evaluate
from tests.datasets.reading import HERE, lines, parsed, rows
from tests.programs import isolated


def test_gsm8k_answer_is_behind_the_marks_and_the_chain_has_no_calculator():
    solution = "She sold 48/2 = <<48/2=24>>24 in May.\nThat is <<1000+80=1080>>1,080 cents.\n#### 1,080"
    e = parsed("gsm8k", {"question": "How much? ", "answer": solution}).example
    assert (e.id, e.prompt, e.answer, e.task) == ("train.jsonl:1", "How much?", "1,080", "gsm8k")
    assert e.chain == "She sold 48/2 = 24 in May.\nThat is 1,080 cents."


def test_math_answer_is_the_last_box_with_its_braces():
    solution = r"First $\boxed{1}$, no: $\boxed{\frac{1}{\{2\}}}$."
    record = {"problem": "p", "solution": solution, "level": "Level 1", "type": "Algebra"}
    row = parsed("math", record)
    assert (row.example.answer, row.example.chain) == (r"\frac{1}{\{2\}}", solution)
    assert row.extra == {"level": "Level 1", "type": "Algebra"} and row.split == ""
    spaced = parsed("math", {"problem": "p", "solution": r"is $\boxed 9$."})
    assert spaced.example.answer == "9"
    empty = DATASETS["math"].parse({"problem": "p", "solution": r"$\boxed{}$ primes"}, HERE)
    assert empty == Skipped("no \\boxed answer")


def test_math_500_is_a_split_of_its_own_whatever_its_file_is_called():
    record = {"problem": "p", "solution": r"\boxed{2}", "answer": "2", "unique_id": "test/algebra/7.json"}
    row = parsed("math", record, HERE._replace(split="test"))
    assert (row.split, row.example.id) == ("math500", "test/algebra/7.json")


def test_math_reads_the_original_folder_and_archive(tmp_path):
    for split, n in (("train", 3), ("test", 2)):
        for i in range(n):
            file = tmp_path / "MATH" / split / "algebra" / f"{i}.json"
            record = {"problem": f"{split} {i}", "solution": rf"\boxed{{{i}}}", "level": "Level 1", "type": "Algebra"}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(record, indent=1))
    with tarfile.open(tmp_path / "MATH.tar", "w") as archive:
        archive.add(tmp_path / "MATH", arcname="MATH")
    with zipfile.ZipFile(tmp_path / "MATH.zip", "w") as archive:
        for file in sorted((tmp_path / "MATH").rglob("*.json")):
            archive.write(file, file.relative_to(tmp_path))
    expected = [("test", "test 0", "0"), ("test", "test 1", "1")] + [("train", f"train {i}", str(i)) for i in range(3)]
    for source in ("MATH", "MATH.tar", "MATH.zip"):
        parsed_rows = rows("math", tmp_path / source).rows
        assert [(r.split, r.example.prompt, r.example.answer) for r in parsed_rows] == expected
        assert parsed_rows[0].example.id.endswith("test/algebra/0.json")
    assert [r.split for r in rows("math", tmp_path / "MATH" / "train").rows] == ["train"] * 3


def test_deepscaler_answers_of_every_part():
    def answer(record, file="deepscaler.json", split=""):
        row = parsed("deepscaler", record, Location(file, 1, "row", split=split))
        return row.example.answer, row.split

    assert answer({"problem": "p", "answer": "$5$", "solution": "s"}) == ("$5$", "")  # as provided
    assert answer({"problem": "p", "answer": 142.0}, "test_amc.jsonl.gz", "test") == ("142", "amc")
    olympiad = {"problem": "p", "answer": ["$2^{9}$"], "solution": ["one", "two"], "context": None}
    assert answer(olympiad, "data/test/math/olympiad_bench.json", "test") == ("2^{9}", "olympiad_bench")
    assert answer({**olympiad, "answer": ["$69$,$84$"]}, "test.json", "test") == ("$69$,$84$", "test")
    row = parsed("deepscaler", {**olympiad, "context": "Let $n=2$."})
    assert (row.example.prompt, row.example.chain) == ("Let $n=2$.\n\np", "one\n\ntwo")


def test_alpaca_prompt_holds_the_input_where_there_is_one(tmp_path):
    (tmp_path / "alpaca_data_cleaned.json").write_text(
        json.dumps(
            [
                {"instruction": "Name the odd one.", "input": "a, b, 3", "output": "3"},
                {"instruction": "Say hello.", "input": "", "output": "Hello.\u2028Bye."},
                {"instruction": "Draw a house.", "input": "", "output": "<nooutput> Cannot."},
                {"instruction": "Be silent.", "input": "", "output": ""},
            ]
        )
    )
    read = rows("alpaca", tmp_path / "alpaca_data_cleaned.json")
    prompts = [(r.example.prompt, r.example.answer, r.split) for r in read.rows]
    assert prompts == [
        ("Name the odd one.\n\na, b, 3", "3", "train"),
        ("Say hello.", "Hello.\u2028Bye.", "train"),
    ]
    assert read.left_out == {"marked as having no output": 1, "no answer": 1}


PROOF = {"problem": "Prove it.", "solution": "It is so.", "answer": "proof", "question_type": "proof", "source": "x"}


def test_numina_proof_keeps_proofs_without_links():
    assert parsed("numina_proof", PROOF).example.answer == "It is so."
    assert parsed("numina_proof", {**PROOF, "question_type": "math-word-problem"}).example.prompt == "Prove it."
    for change, reason in (
        ({"question_type": "MCQ", "answer": "B"}, "not a proof"),
        ({"solution": "See https://a.org"}, "hyperlink or image"),
        ({"problem": "![](x.png) Prove it."}, "hyperlink or image"),
    ):
        assert DATASETS["numina_proof"].parse({**PROOF, **change}, HERE) == Skipped(reason)
    interval = {**PROOF, "solution": "As $f$ maps $[0,1](x)$ to itself."}
    assert parsed("numina_proof", interval).example.answer == interval["solution"]


@pytest.mark.parametrize(
    "text, clean",
    [
        ("## Task 3 - 010523\nProve it.", "Prove it."),
        ("**Problem 2.1-3.** 5 points lie", "5 points lie"),
        ("Problem 3. 5 points lie", "5 points lie"),
        ("### Problem 12.\r\n\r\n\r\n\r\nProve\u200b it.", "Prove it."),
        ("**Solution.** It is so...", "It is so."),
        ("Proof: By (1).", "By (1)."),
        ("G5. Let $n$ be", "Let $n$ be"),
        ("A1 (ROU) Let $n$ be", "Let $n$ be"),
        ("(ROU7) Let", "Let"),
        ("ABC is a triangle.", "ABC is a triangle."),
        ("A1 and A2 are points.", "A1 and A2 are points."),
        ("Problems abound.", "Problems abound."),
        ("#A = 5, so 1, 2, 3, ...", "#A = 5, so 1, 2, 3, ..."),
        ("One  .", "One  ."),
        ("\u0000\u0007e\u0301", "\u00e9"),
        ("...", "."),
    ],
)
def test_numina_cleaning(text, clean):
    assert numina_proof.clean(text) == clean
    assert numina_proof.clean(clean) == clean


def test_svamp_joins_body_and_question_and_refuses_placeholders(tmp_path):
    record = {"Body": "He has 3.", "Question": "How many?", "Answer": 3.0, "ID": "chal-1", "Type": "Addition"}
    e = parsed("svamp", record).example
    assert (e.id, e.prompt, e.answer) == ("chal-1", "He has 3. How many?", "3")
    (tmp_path / "SVAMP.json").write_text(json.dumps([record]))  # the original: a list
    assert [r.split for r in rows("svamp", tmp_path / "SVAMP.json").rows] == ["test"]
    lines(tmp_path / "train.jsonl", record)
    assert [r.split for r in rows("svamp", tmp_path / "train.jsonl").rows] == ["train"]
    lines(tmp_path / "copy.jsonl", {**record, "Body": "He has number0."})
    with pytest.raises(UserError, match=r"copy\.jsonl:1: field 'Body' has number0"):
        rows("svamp", tmp_path / "copy.jsonl")


def test_mawps_numbers_and_near_copies():
    def of(question, **answer):
        return parsed("mawps", {"input": question, **answer})

    first = of("Joan found 70 seashells . She has 27 seashell .", target=43.0)
    again = of("Joan found 70 seashells. She has 27 seashell left.", target=43)
    assert first.example.answer == again.example.answer == "43" and first.key == again.key
    assert of("Joan found 70 seashells . She has 28 .", target=42).key != first.key
    assert of("q 1", target=0.6666666667).example.answer == "0.6666666667"
    assert of("q 1", target=1e-05).example.answer == "0.00001"
    original = parsed("mawps", {"sQuestion": "q", "lSolutions": [4.0], "iIndex": 1})
    assert original.example.answer == "4"


def test_countdown_keeps_a_right_expression_and_finds_one_otherwise():
    def of(numbers, target, **more):
        return DATASETS["countdown"].parse({"nums": numbers, "target": target, **more}, HERE)

    assert of([19, 9, 3], 13, expression="19 + 3 - 9", question="?").example.answer == "19 + 3 - 9"
    for wrong in ("19 - 9 + 4", "19 + 3 - 3", "13", "19 + 3 - 9 = 13", "no idea"):
        assert graders.countdown(of([19, 9, 3], 13, expression=wrong).example.answer, "19 + 3 - 9")
    assert of([1, 2, 3], 9).example.answer == "(1+2)*3"
    assert of([1, 1, 1], 100) == Skipped("no solution")
    assert "more than 4 numbers" in of([1, 2, 3, 4, 5], 15).reason
    assert of([5, 4, 3, 2, 1], 15, expression="5+4+3+2+1").example.answer == "5+4+3+2+1"
    same = of([2, 1, 3], 9)
    assert same.key == of([1, 2, 3], 9).key and "2, 1, 3" in same.example.prompt
    assert parsed("countdown", {"numbers": [2, 3], "target": 6}).extra == {"nums": [2, 3], "target": 6}


@pytest.mark.parametrize(
    "numbers, target",
    [([3, 3, 8, 8], 24), ([1, 5, 5, 5], 24), ([1, 3, 4, 6], 24), ([10, 5, 2, 9], 13), ([7], 7), ([2, 9], -7)],
)
def test_countdown_search_is_over_rational_numbers(numbers, target):
    solution = countdown.solve(numbers, target)  # 8/(3-8/3), (5-1/5)*5 and 6/(1-3/4) have no whole detour
    assert countdown.solves(solution, numbers, target)
    assert graders.countdown(solution, solution)


def test_countdown_search_agrees_with_every_expression_of_three_numbers():
    # (a o b) o c and a o (b o c) over all orders are all there is for three numbers.
    numbers = [2, 3, 7]
    values = set()
    for a, b, c in itertools.permutations(numbers):
        for o, p in itertools.product("+-*/", repeat=2):
            for text in (f"({a}{o}{b}){p}{c}", f"{a}{o}({b}{p}{c})"):
                values.add(evaluate(text)[0])
    for target in range(-30, 60):
        assert (countdown.solve(numbers, target) is not None) == (target in values)


def test_cruxeval_asks_for_the_output():
    record = {"code": "def f(x):\n    return [x]\n", "input": "'a'", "output": "['a']", "id": "sample_0"}
    row = parsed("cruxeval_o", record)
    assert (row.example.id, row.example.answer) == ("sample_0", "['a']")
    assert "def f(x):\n    return [x]\n```" in row.example.prompt and "f('a')" in row.example.prompt
    assert graders.code_output(row.example.answer, '["a"]')


@isolated
def test_humaneval_reference_is_a_body_that_passes_its_own_tests():
    record = {
        "task_id": "HumanEval/0",
        "prompt": "\ndef add(a, b):\n    '''Sum.'''\n",
        "entry_point": "add",
        "canonical_solution": " \n    total = a + b\n    return total\n\n\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }
    row = parsed("humaneval", record)
    assert row.example.answer == "    total = a + b\n    return total"
    reference = json.dumps(row.extra)
    assert graders.code_tests(reference, row.example.answer)
    assert not graders.code_tests(reference, "    return a - b")


def test_mmlu_pro_letters_options():
    record = {"question_id": 7, "question": "Which?", "options": ["x", "y", "N/A", "N/A"], "answer": "B"}
    record |= {"answer_index": 1, "category": "physics", "cot_content": "A: Let's see. (B)."}
    row = parsed("mmlu_pro", record)
    assert row.example.prompt == "Which?\n\nA. x\nB. y\n\nAnswer with the letter of the right option."
    assert (row.example.id, row.example.answer, row.example.chain) == ("7", "B", "Let's see. (B).")
    assert graders.multiple_choice(row.example.answer, "(b)")
    with pytest.raises(ValueError, match="'answer' .*'C'.* 2 options"):
        parsed("mmlu_pro", {**record, "answer": "C"})


def test_telemath_holds_out_the_same_share_of_every_kind(tmp_path):
    def record(i):
        difficulty = "Basic" if i % 3 else "Advanced"
        return {"question": f"q{i}", "answer": i / 4, "category": f"c{i % 5}", "tags": [], "difficulty": difficulty}

    lines(tmp_path / "test.jsonl", *map(record, range(150)))
    read = rows("telemath", tmp_path / "test.jsonl")
    assert [r.example.answer for r in read.rows[:6]] == ["0", "0.25", "0.5", "0.75", "1", "1.25"]
    splits, _ = splitting.split_rows(DATASETS["telemath"], read.rows, DATASETS["telemath"].heldout)
    assert {name: len(split) for name, split in splits.items()} == {"train": 120, "test": 30}
    for category in range(5):
        held = [r for r in splits["test"] if r.extra["category"] == f"c{category}"]
        assert sorted(r.extra["difficulty"] for r in held) == ["Advanced"] * 2 + ["Basic"] * 4


def test_minif2f_reads_its_folder_and_proofnet_its_lines(tmp_path):
    for split, name in (("valid", "a"), ("test", "b")):
        record = {"problem_name": name, "informal_statement": "Show it.", "informal_proof": "So."}
        lines(tmp_path / "miniF2F" / "informal" / split / f"{name}.json", record)
    lines(tmp_path / "miniF2F" / "lean" / "other.json", {"no": "proof"})
    parsed_rows = rows("minif2f", tmp_path / "miniF2F").rows
    assert sorted((r.example.id, r.split, r.example.answer) for r in parsed_rows) == [
        ("a", "validation", "So."),
        ("b", "test", "So."),
    ]
    proof = "\\begin{proof}\n\n  So.\n\n\\end{proof}"
    lines(tmp_path / "p" / "valid.jsonl", {"id": "R|1", "nl_statement": "Show it.", "nl_proof": proof})
    lines(
        tmp_path / "p" / "test.jsonl",
        {"id": "R|2", "nl_statement": "And it.", "nl_proof": ""},
        {"id": "R|3", "nl_statement": "And it.", "nl_proof": proof},
    )
    read = rows("proofnet", tmp_path / "p")
    assert [(r.example.id, r.split, r.example.answer) for r in read.rows] == [
        ("R|3", "test", "So."),
        ("R|1", "validation", "So."),
    ]
    assert read.left_out == {"no answer": 1}
