"""SVAMP (Patel et al. 2021): 1,000 word problems with varied wording, an evaluation set as a whole.

Read from SVAMP.json or JSON lines with Body, Question, Answer; files named train and test give those splits.

Not run on the real file.
"""

import re

from rl_likelihood.datasets.common import BadRow, DataSet, Location, Row, Skipped, number, text
from rl_likelihood.shapes import Example


def parse(record: dict, location: Location) -> Row | Skipped:
    body, question = text(record, "Body"), text(record, "Question")
    if re.search(r"\bnumber\d\b", body):
        raise BadRow("field 'Body' has number0 in place of its numbers: a pre-processed copy; fetch the original")
    uid = str(record.get("ID") or location.id)
    extra = {k: record[k] for k in ("Type", "Equation") if k in record}
    return Row(Example(uid, f"{body} {question}".strip(), number(record, "Answer"), task="svamp"), extra=extra)


DATASET = DataSet(
    name="svamp",
    parse=parse,
    fetch="SVAMP.json of arkilpatel/SVAMP",
    addresses=(
        "https://raw.githubusercontent.com/arkilpatel/SVAMP/689d7ccac74b9983a2ac7cc3b264f441b99e7c53/SVAMP.json",
    ),
    split="test",
    grader="numeric",
    max_prompt=192,
    max_answer=24,
)
