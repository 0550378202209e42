r"""MATH (Hendrycks et al. 2021): 7,500 training and 5,000 test competition problems, and MATH-500, 500 of the test.

The answer is the last \boxed of the solution, the chain the solution. A tenth of the training problems is held
out as validation, as Kwiatkowski et al. do. Rows of MATH-500 (they have a unique_id) are a split of their own.

Published numbers (Kwiatkowski et al. 2602.03979) are in experiments/paper_verifiable.py.
"""

from rl_likelihood.datasets.common import DataSet, Location, Row, Skipped, text
from rl_likelihood.grading.text import last_boxed
from rl_likelihood.shapes import Example


def parse(record: dict, location: Location) -> Row | Skipped:
    problem, solution = text(record, "problem"), text(record, "solution")
    answer = (last_boxed(solution) or "").strip()
    if not answer:
        return Skipped("no \\boxed answer")
    uid = record.get("unique_id") or record.get("id")
    extra = {k: record[k] for k in ("level", "subject", "type") if k in record}
    split = "math500" if "unique_id" in record else ""
    return Row(Example(str(uid or location.id), problem, answer, solution, "math"), split=split, extra=extra)


DATASET = DataSet(
    name="math",
    parse=parse,
    fetch="MATH.tar of hendrycks/math (or a folder or files of its problems, with train or test in their path), and "
    "test.jsonl of MATH-500",
    addresses=(
        "hf:EleutherAI/hendrycks_math@21a5633873b6a120296cce3e2df9d5550074f4a3",
        "hf:HuggingFaceH4/MATH-500@6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    ),
    heldout=0.1,
    heldout_split="validation",
    grader="exact_match",
    max_prompt=2304,  # the longest problem, with its figure's source, has about 2,000 tokens
    max_answer=128,
    max_chain=896,
    eval_split="test",
    fast_split="validation",
)
