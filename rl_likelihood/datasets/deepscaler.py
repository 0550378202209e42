"""DeepScaleR-Preview: about 40,300 competition problems with final answers; a tenth is held out.

Read from deepscaler.json (problem, answer, solution), or from the files of agentica-project/rllm it was made of;
there every file of the test folder (AIME, AMC, OlympiadBench, Minerva) is a split of its own. The provided
answer is the reference, the solution, where there is one, the chain. The paper drops long solutions without
saying how long: --max_chars does.

Published numbers (Kwiatkowski et al. 2602.03979) are in experiments/paper_verifiable.py.

Run on rllm's parts (MATH, AIME; three test sets). Not run on the real deepscaler.json.
"""

import re

from rl_likelihood.datasets.common import DataSet, Location, Row, Skipped, field, number, text
from rl_likelihood.shapes import Example


def parse(record: dict, location: Location) -> Row | Skipped:
    solution = record.get("solution") or ""
    if isinstance(solution, list):  # OlympiadBench: several solutions, several answers
        solution = "\n\n".join(map(str, solution))
    if isinstance(field(record, "answer"), list):
        answer = ", ".join(_undollar(str(a)) for a in record["answer"])
    else:
        answer = number(record, "answer")
    context = text(record, "context") if "context" in record else ""
    problem = text(record, "problem", "question")
    prompt = f"{context}\n\n{problem}" if context else problem
    extra = {k: record[k] for k in ("difficulty", "type", "subfield", "unit") if record.get(k) is not None}
    split = _test_set(location.file) if location.split == "test" else ""
    return Row(Example(location.id, prompt, answer, solution.strip(), "deepscaler"), split=split, extra=extra)


def _undollar(answer: str) -> str:
    """$x$ is x; several formulas in one text stay as they are."""
    answer = answer.strip()
    inner = answer[1:-1]
    return inner.strip() if answer[:1] == answer[-1:] == "$" and len(answer) > 2 and "$" not in inner else answer


def _test_set(file: str) -> str:
    """test_aime.jsonl.gz and test/math/aime.json are the set aime."""
    stem = file.rpartition("/")[2].partition(".")[0].lower()
    return re.sub(r"\W", "_", re.sub(r"^test[-_.]?", "", stem)) or "test"


DATASET = DataSet(
    name="deepscaler",
    parse=parse,
    fetch="deepscaler.json of DeepScaleR-Preview-Dataset",
    addresses=("hf:agentica-org/DeepScaleR-Preview-Dataset@b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29",),
    split="train",
    heldout=0.1,
    heldout_split="validation",
    grader="exact_match",
    max_prompt=2560,  # 4,000 characters of a figure's source are over 2,300 tokens
    max_answer=128,
    max_chain=896,
)
