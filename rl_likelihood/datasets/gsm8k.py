"""GSM8K (Cobbe et al. 2021): 7,473 training and 1,319 test word problems with worked solutions.

The answer is what follows `####`; the chain is the solution before it, without its <<calculator>> marks.

Published: Intuitor (2505.19590) has 67.3 % for Qwen2.5-3B and 68.8 % for Llama-3.2-3B-Instruct untouched, 82.6 % and
71.4 % with GRPO. Measured here: SmolLM2-135M-Instruct was right on 0 of 24 test problems with two worked examples, so a
0/1 reward teaches it nothing.
"""

import re

from rl_likelihood.datasets.common import BadRow, DataSet, Location, Row, Skipped, text
from rl_likelihood.shapes import Example

_FOLDER = (
    "https://raw.githubusercontent.com/openai/grade-school-math/"
    "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/"
)


def parse(record: dict, location: Location) -> Row | Skipped:
    solution, mark, answer = text(record, "answer").rpartition("####")
    if not mark:
        raise BadRow("field 'answer' has no '####' before its result")
    chain = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return Row(Example(location.id, text(record, "question"), answer.strip(), chain, "gsm8k"))


DATASET = DataSet(
    name="gsm8k",
    parse=parse,
    fetch="train.jsonl and test.jsonl of openai/grade-school-math (grade_school_math/data), or hf:openai/gsm8k/main",
    addresses=(_FOLDER + "train.jsonl", _FOLDER + "test.jsonl"),
    grader="numeric",
    max_prompt=320,
    max_answer=24,
    max_chain=488,
)
