"""What an evaluation came to, for people."""

import json

from rl_likelihood.cli.summary import evaluation_text, summary


def test_an_evaluation_says_what_was_asked_its_numbers_and_what_could_not_be_graded():
    row = {"step": 20, "data": "chain_sum", "questions": 24, "samples": 4, "seconds": 61.2, "grader_failures": 2}
    row |= {"greedy_success": 0.5, "ci95": {"greedy_success": [0.3, 0.7]}, "records": "evaluations/20.jsonl"}
    first, *_, failures, _, records = evaluation_text(row).splitlines()
    assert first == "step 20, chain_sum: 24 questions, 1 greedy and 4 sampled chains each, 61 s"
    assert any(
        line.split()[-5:] == ["50.0%", "30.0%", "to", "70.0%", "24"] for line in evaluation_text(row).splitlines()
    )
    assert failures.startswith("2 answers could not be graded") and records.split() == [
        "records",
        "evaluations/20.jsonl",
    ]
    quiet = evaluation_text({k: v for k, v in row.items() if k not in ("records", "grader_failures")})
    assert "graded" not in quiet and "records" not in quiet


def test_long_prompts_and_chains_are_cut_in_the_middle(tmp_path, capsys):
    prompt = "Rules:\n" + "one rule\n" * 200 + "Which call comes next?"
    example = {"prompt": prompt, "reference": "done()", "right": False, "text": "word " * 400 + "the end"}
    row = {"stage": "untouched", "step": 0, "questions": 1, "greedy_success": 0.0, "examples": [example]}
    (tmp_path / "eval.jsonl").write_text(json.dumps(row) + "\n")
    summary(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    (asked,), (answered,) = ([x for x in lines if end in x] for end in ("[done()]", "the end"))
    assert asked.split()[:2] == ["Rules:", "one"] and "[...]" in asked and "call comes next?" in asked
    assert "[...]" in answered and max(len(asked), len(answered)) < 320


def test_an_answer_without_a_mark_is_not_called_wrong(tmp_path, capsys):
    examples = [{"prompt": "1 + 1", "reference": "2", "right": mark, "text": "2"} for mark in (True, False, None)]
    row = {"stage": "untouched", "step": 0, "questions": 3, "greedy_success": 0.5, "examples": examples}
    (tmp_path / "eval.jsonl").write_text(json.dumps(row) + "\n")
    summary(tmp_path)
    marks = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("    untouched")]
    assert marks == ["right", "wrong", "ungraded"]
