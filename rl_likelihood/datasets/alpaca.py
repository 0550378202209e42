"""Alpaca, cleaned: about 51,800 instructions with written answers; 1,000 are held out.

The prompt is the instruction and, where there is one, its input below it.

Not run on the real file; its format (a list of objects with instruction, input, output) is its authors'.
"""

from __future__ import annotations

from rl_likelihood.datasets.common import DataSet, Left, Place, Row, text
from rl_likelihood.shapes import Example


def parse(record: dict, place: Place) -> Row | Left:
    instruction, given = text(record, "instruction"), text(record, "input")
    answer = text(record, "output", "response")
    if "<nooutput>" in answer.lower():
        return Left("marked as having no output")
    prompt = f"{instruction}\n\n{given}" if given else instruction
    return Row(Example(place.id, prompt, answer, task="alpaca"))


DATASET = DataSet(
    name="alpaca",
    parse=parse,
    fetch="alpaca_data_cleaned.json",
    addresses=("hf:yahma/alpaca-cleaned@12567cabf869d7c92e573c7c783905fc160e9639",),
    split="train",
    heldout=1000,
    heldout_split="validation",
)
