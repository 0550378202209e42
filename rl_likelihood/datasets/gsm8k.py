"""GSM8K (Cobbe et al. 2021): 7,473 training and 1,319 test word problems with worked solutions.

The answer is what follows `####`; the chain is the solution before it, without its <<calculator>> marks.
"""

from __future__ import annotations

import re

from rl_likelihood.datasets.common import BadRow, DataSet, Left, Place, Row, text
from rl_likelihood.shapes import Example

_FOLDER = (
    "https://raw.githubusercontent.com/openai/grade-school-math/"
    "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/"
)


def parse(record: dict, place: Place) -> Row | Left:
    solution, mark, answer = text(record, "answer").rpartition("####")
    if not mark:
        raise BadRow("field 'answer' has no '####' before its result")
    chain = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return Row(Example(place.id, text(record, "question"), answer.strip(), chain, "gsm8k"))


DATASET = DataSet(
    name="gsm8k",
    parse=parse,
    fetch="train.jsonl and test.jsonl of openai/grade-school-math (grade_school_math/data), or hf:openai/gsm8k/main",
    addresses=(_FOLDER + "train.jsonl", _FOLDER + "test.jsonl"),
)
