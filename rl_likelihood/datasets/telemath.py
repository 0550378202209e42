"""TeleMath: 500 numeric problems of telecommunications. There is no official training split: 100 are held out,
the same share of every category and difficulty, and the other 400 are for training.

Not run on the real file, which its authors give out on the hub after a log-in (so its address names no revision);
its fields (question, answer, category, tags, difficulty) are theirs.
"""

from rl_likelihood.datasets.common import DataSet, Location, Row, Skipped, number, text
from rl_likelihood.shapes import Example


def parse(record: dict, location: Location) -> Row | Skipped:
    question, answer = text(record, "question"), number(record, "answer")
    extra = {"category": text(record, "category"), "difficulty": text(record, "difficulty")}
    # The one file is called test; what is held out of it is our choice.
    return Row(Example(location.id, question, answer, task="telemath"), split="train", extra=extra)


DATASET = DataSet(
    name="telemath",
    parse=parse,
    fetch="the data file of TeleMath",
    addresses=("hf:netop/TeleMath",),
    split="train",
    heldout=0.2,
    strata=("category", "difficulty"),
    grader="telemath",
    max_prompt=1024,
    max_answer=32,
)
