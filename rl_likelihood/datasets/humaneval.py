"""HumanEval (Chen et al. 2021): 164 Python functions to complete; for evaluation only.

The answer is the canonical body, indented as it follows the prompt. `extra` has what runs it: the function's
head ("prompt"), the tests ("test") and its name ("entry_point").
"""

import re

from rl_likelihood.datasets.common import DataSet, Location, Row, Skipped, field, text
from rl_likelihood.shapes import Example


def parse(record: dict, location: Location) -> Row | Skipped:
    head = str(field(record, "prompt"))
    # The body's own indentation counts; only empty lines around it go.
    body = re.sub(r"^(?:[ \t]*\n)+", "", str(field(record, "canonical_solution"))).rstrip()
    extra = {"prompt": head, "test": str(field(record, "test")), "entry_point": text(record, "entry_point")}
    prompt = f"Complete this Python function. Answer with its body only, indented.\n\n```python\n{head.strip()}\n```"
    return Row(Example(text(record, "task_id"), prompt, body, task="humaneval"), extra=extra)


DATASET = DataSet(
    name="humaneval",
    parse=parse,
    fetch="HumanEval.jsonl.gz of openai/human-eval (data)",
    addresses=(
        "https://raw.githubusercontent.com/openai/human-eval/"
        "6d43fb980f9fee3c892a914eda09951f772ad10d/data/HumanEval.jsonl.gz",
    ),
    split="test",
    grader="code_tests",
    max_prompt=512,
    max_answer=288,
)
