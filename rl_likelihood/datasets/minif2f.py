"""miniF2F, informal proofs: 244 validation and 244 test statements, each with a proof in words as its answer.

Read from the repository's folder (informal/valid, informal/test: a file for each problem), from its archive, or
from JSON lines with problem_name, informal_statement, informal_proof. Run on the real validation proofs.
"""

from rl_likelihood.datasets.common import WRITTEN, DataSet, Location, Row, Skipped, text
from rl_likelihood.shapes import Example


def parse(record: dict, location: Location) -> Row | Skipped:
    statement, proof = text(record, "informal_statement"), text(record, "informal_proof")
    uid = text(record, "problem_name") or location.id
    return Row(Example(uid, statement, proof, task="proof"))


DATASET = DataSet(
    name="minif2f",
    parse=parse,
    fetch="the folder informal of facebookresearch/miniF2F",
    addresses=("https://github.com/facebookresearch/miniF2F/archive/e4f113090ad82d64f8ce064d2f55b613a9b6bded.zip",),
    patterns=("*informal*",),
    grader="none",
    max_prompt=384,
    max_answer=1536,
    instruction=WRITTEN,
    train_split="validation",
)
