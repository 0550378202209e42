"""TeleQnA (Maatouk et al. 2023): 10,000 questions on telecommunications; a tenth is held out.

Three data sets of one file. `teleqna` is multiple choice, its answer a letter. `teleqna_free` has no options in the
prompt and the text of the right option as answer; left out are questions whose answer refers to other options or
whose stem needs them, and those whose question is only "Research Papers". The chain is the explanation. All sets
hold out the same questions: the stem decides. One stem with other options is another multiple-choice question.

Of a choice a letter is scored and the token that ends it: with prompt.score_delims=none the letter alone, and then
prob and avg_prob are one reward. GPT-4 answers about 74 % of the choices (README of gsma-labs/evals).

`teleqna_pairs` is for reward models: the question without options as prompt, the right option as answer, the others as
rejected. Its shortcuts: the longer option is right in 57 % of the pairs (60 % without options that refer to others,
which are marked), and explanations give the right option away in 89 %, so none is written.

The authors' archive is encrypted (AES) with the password that their README prints.
"""

import dataclasses
import re

from rl_likelihood.datasets.common import LETTERS, BadRow, DataSet, Location, Row, Skipped, multiple_choice, text
from rl_likelihood.shapes import Example

REFERS = re.compile(
    r"^(?:all|none|both|neither|any|either|some)(?: of)?(?: the)? "
    r"(?:above|following|these|those|options?|choices|answers|mentioned|listed)\b"
    r"|^(?:all|none|both|neither)\.?$"
    r"|\boptions? ?\(?\d"
    r"|^(?:both|neither|either) \(?[a-e1-5]\)? (?:and|or|nor|&) \(?[a-e1-5]\)?(?!\w)"
    r"|\b(?:all|none|any|both) of the above\b",
    re.I,
)
_NEEDS = re.compile(
    r"\b(?:of|among|from) the (?:following|above|options)\b"
    r"|\b(?:which|one|any|none|all) of (?:these|those)\b"
    r"|\bthe following (?:is|are|was|were|options?|statements?|choices|answers)\b"
    r"|\bfollowing\s*[?:]",
    re.I,
)


def parse(record: dict, location: Location) -> Row | Skipped:
    question, options, right = _fields(record)
    extra = {"category": text(record, "category"), "options": options}
    example = Example(
        location.id, multiple_choice(question, options), LETTERS[right - 1], text(record, "explanation"), "teleqna"
    )
    stem = _stem(question)
    key = "\n".join([stem, *sorted(_stem(option) for option in options)])
    return Row(example, key=key, group=stem, extra=extra)


def parse_free(record: dict, location: Location) -> Row | Skipped:
    question, options, right = _fields(record)
    answer = options[right - 1]
    if REFERS.search(answer):
        return Skipped("answer refers to other options")
    if _NEEDS.search(question) or question == "Research Papers":
        return Skipped("question cannot be asked without its options")
    extra = {"category": text(record, "category"), "options": options}
    example = Example(location.id, question, answer, text(record, "explanation"), "teleqna_free")
    return Row(example, key=_stem(question), extra=extra)


def parse_pairs(record: dict, location: Location) -> Row | Skipped:
    question, options, right = _fields(record)
    if len(options) < 2:
        return Skipped("one option")
    if len(set(options)) < len(options):
        return Skipped("two options are equal")
    refers = any(REFERS.search(option) for option in options)
    rejected = [option for n, option in enumerate(options, start=1) if n != right]
    extra = {"category": text(record, "category"), "rejected": rejected, "refers": refers}
    example = Example(location.id, question, options[right - 1], task="teleqna_pairs")
    stem = _stem(question)
    return Row(example, key="\n".join([stem, *sorted(map(_stem, options))]), group=stem, extra=extra)


def _stem(question: str) -> str:
    """The same in both sets, so that both hold out the same questions."""
    return "teleqna " + " ".join(question.casefold().split())


def _fields(record: dict) -> tuple[str, list[str], int]:
    """(question, options, number of the right one from 1).

    An answer is a number and the option's text. Where they disagree (question 6783) a text that is word for word one
    option is right; four texts are none, by a letter or a word, and there the number is."""
    question, answer = text(record, "question"), text(record, "answer")
    options = []
    while f"option {len(options) + 1}" in record:
        options.append(text(record, f"option {len(options) + 1}"))
    number = re.match(r"option (\d+)\s*:", answer)
    if number is None or not 1 <= int(number[1]) <= len(options):
        raise BadRow(f"field 'answer' is {answer[:40]!r}; it must be 'option n: ...' with n from 1 to {len(options)}")
    same = [n for n, option in enumerate(options, start=1) if option == answer[number.end() :].strip()]
    return question, options, same[0] if len(same) == 1 else int(number[1])


DATASET = DataSet(
    name="teleqna",
    parse=parse,
    fetch="TeleQnA.zip of netop-team/TeleQnA",
    addresses=(
        "https://raw.githubusercontent.com/netop-team/TeleQnA/d7ee5e3a705240075ecbc87cce01f1f85db5d947/TeleQnA.zip",
    ),
    patterns=("*teleqna*.txt", "*"),
    split="train",
    heldout=0.1,
    password=b"teleqnadataset",
    grader="multiple_choice",
    max_prompt=512,
    max_answer=16,
    max_chain=496,
)
FREE = dataclasses.replace(DATASET, name="teleqna_free", parse=parse_free, grader="none", max_answer=96, max_chain=416)
PAIRS = dataclasses.replace(
    DATASET, name="teleqna_pairs", parse=parse_pairs, grader="none", max_answer=96, max_chain=416
)
