"""CRUXEval-O (Gu et al. 2024): what does this Python function return? 800 questions, for evaluation only."""

from rl_likelihood.datasets.common import DataSet, Location, Row, Skipped, field, text
from rl_likelihood.shapes import Example


def parse(record: dict, location: Location) -> Row | Skipped:
    code, given = str(field(record, "code")).strip("\n"), text(record, "input")
    prompt = f"```python\n{code}\n```\n\nWhat does f({given}) return? Answer with a Python literal."
    uid = str(record.get("id") or location.id)
    return Row(Example(uid, prompt, text(record, "output"), task="cruxeval_o"), extra={"code": code, "input": given})


DATASET = DataSet(
    name="cruxeval_o",
    parse=parse,
    fetch="cruxeval.jsonl of facebookresearch/cruxeval (data)",
    addresses=(
        "https://raw.githubusercontent.com/facebookresearch/cruxeval/"
        "190faf16d175b5847b0af05d937872b1fb395942/data/cruxeval.jsonl",
    ),
    split="test",
    grader="code_output",
    max_prompt=256,
    max_answer=64,
)
