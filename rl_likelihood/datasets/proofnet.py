"""ProofNet, informal proofs: 185 validation and 186 test statements of undergraduate textbooks; the answer is the
proof in words, without its LaTeX environment. One proof of each split is empty and left out."""

import re

from rl_likelihood.datasets.common import WRITTEN, DataSet, Location, Row, Skipped, text
from rl_likelihood.shapes import Example

_FOLDER = (
    "https://raw.githubusercontent.com/zhangir-azerbayev/ProofNet/509ad79710ed4f46ff5c282ed5640c1aa9ac3f30/benchmark/"
)


def parse(record: dict, location: Location) -> Row | Skipped:
    statement = text(record, "nl_statement")
    proof = re.sub(r"^\\begin\{proof\}|\\end\{proof\}$", "", text(record, "nl_proof")).strip()
    return Row(Example(text(record, "id"), statement, proof, task="proof"))


DATASET = DataSet(
    name="proofnet",
    parse=parse,
    fetch="valid.jsonl and test.jsonl of zhangir-azerbayev/ProofNet (benchmark)",
    addresses=(_FOLDER + "valid.jsonl", _FOLDER + "test.jsonl"),
    patterns=("*proofnet*", "*benchmark/*", "valid.jsonl", "test.jsonl"),
    grader="none",
    max_prompt=256,
    max_answer=1920,
    instruction=WRITTEN,
    train_split="validation",
)
