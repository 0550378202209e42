"""MMLU-Pro (Wang et al. 2024): 12,032 questions with up to ten options, and 70 for validation; for evaluation only.

The answer is the letter, as the authors grade. Options that say N/A fill up the lists of the original and go.
"""

from rl_likelihood.datasets.common import LETTERS, BadRow, DataSet, Location, Row, Skipped, field, multiple_choice, text
from rl_likelihood.shapes import Example


def parse(record: dict, location: Location) -> Row | Skipped:
    question, options = text(record, "question"), field(record, "options")
    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise BadRow("field 'options' must be a list of texts")
    options = [o.strip() for o in options if o.strip() != "N/A"]
    letter = text(record, "answer")
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise BadRow(f"field 'answer' is {letter!r}; it must be the letter of one of the {len(options)} options")
    chain = str(record.get("cot_content") or "").removeprefix("A: ").strip()
    prompt = multiple_choice(question, options)
    extra = {"category": text(record, "category"), "options": options}
    return Row(Example(str(field(record, "question_id")), prompt, letter, chain, "mmlu_pro"), extra=extra)


DATASET = DataSet(
    name="mmlu_pro",
    parse=parse,
    fetch="the parquet files of MMLU-Pro",
    addresses=("hf:TIGER-Lab/MMLU-Pro@b189ec765aa7ed75c8acfea42df31fdae71f97be",),
    split="test",
    grader="multiple_choice",
    max_prompt=1792,
    max_answer=8,
)
