"""Alpaca, cleaned: about 51,800 instructions with written answers; 1,000 are held out.

The prompt is the instruction and, where there is one, its input below it.

Published numbers are in experiments/paper_nonverifiable.py. Prepare with --max_chars=3000: the paper's 1,024 tokens are
read as that many for the chain and as many for the answer.

Not run on the real file; its format (a list of objects with instruction, input, output) is its authors'.
"""

from rl_likelihood.datasets.common import WRITTEN, DataSet, Location, Row, Skipped, text
from rl_likelihood.shapes import Example


def parse(record: dict, location: Location) -> Row | Skipped:
    instruction, given = text(record, "instruction"), text(record, "input")
    answer = text(record, "output", "response")
    if "<nooutput>" in answer.lower():
        return Skipped("marked as having no output")
    prompt = f"{instruction}\n\n{given}" if given else instruction
    return Row(Example(location.id, prompt, answer, task="alpaca"))


DATASET = DataSet(
    name="alpaca",
    parse=parse,
    fetch="alpaca_data_cleaned.json",
    addresses=("hf:yahma/alpaca-cleaned@12567cabf869d7c92e573c7c783905fc160e9639",),
    split="train",
    heldout=1000,
    heldout_split="validation",
    grader="none",
    max_prompt=1024,
    max_answer=1024,
    max_chain=1024,
    instruction=WRITTEN,
)
