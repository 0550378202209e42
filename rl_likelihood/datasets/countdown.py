"""Countdown: make a target from 3 or 4 numbers, each used exactly once, with + - * / and brackets.

Read from rows with nums (or numbers) and target, as TinyZero's parquet file and reasoning-gym's examples have
them; 1,024 are held out, unless a file named test is given. The reference answer is the row's own expression if
that is a solution, else one found by exhaustive search over rational numbers; rows without any are left out.
A likelihood reward sees one solution of several: the answer that it scores is not the only good one. exact_match and
base_rl compare with that one too; the grader and the rules countdown and countdown_tinyzero take any right expression.
The question is asked in one wording, whatever the source's, and the order of the numbers makes no other question.
"""

from collections.abc import Iterator
from fractions import Fraction

from rl_likelihood.datasets.common import BadRow, DataSet, Location, Row, Skipped, field
from rl_likelihood.grading.countdown import solves
from rl_likelihood.shapes import Example

WORDING = (
    "Use each of the numbers {} exactly once, with +, -, *, / and brackets, to make {}. "
    "Answer with the expression alone."
)
_MOST_NUMBERS = 4  # the search looks at 4 thousand expressions of 4 numbers, 230 thousand of 5


def parse(record: dict, location: Location) -> Row | Skipped:
    numbers, target = field(record, "nums", "numbers"), field(record, "target")
    if not isinstance(numbers, list) or not numbers or not all(map(_whole, numbers)) or not _whole(target):
        raise BadRow("fields 'nums' and 'target' must be a list of whole numbers and a whole number")
    given = record.get("expression") or record.get("answer")
    if isinstance(given, str) and solves(given, numbers, target):
        answer = given.strip()
    elif len(numbers) > _MOST_NUMBERS:
        return Skipped(f"no solution given, and more than {_MOST_NUMBERS} numbers to search")
    else:
        answer = solve(numbers, target)
    if answer is None:
        return Skipped("no solution")
    prompt = WORDING.format(", ".join(map(str, numbers)), target)
    key = f"countdown {sorted(numbers)} {target}"
    return Row(
        Example(location.id, prompt, answer, task="countdown"), key=key, extra={"nums": numbers, "target": target}
    )


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def solve(numbers: list[int], target: int) -> str | None:
    """The first solution, such as (1+2)*3, in a fixed order of search; None if there is none."""
    # (value, text, binding: 3 a number, 2 a product or quotient, 1 a sum or difference)
    return _search([(n, str(n), 3) for n in numbers], target)


def _search(items: list[tuple], target: int) -> str | None:
    """Join any two of the items in every way, until one is left."""
    if len(items) == 1:
        return items[0][1] if items[0][0] == target else None
    for i in range(len(items)):
        for j in range(i + 1, len(items)):
            others = items[:i] + items[i + 1 : j] + items[j + 1 :]
            for joined in _joined(items[i], items[j]):
                solution = _search([joined, *others], target)
                if solution is not None:
                    return solution
    return None


def _joined(a: tuple, b: tuple) -> Iterator[tuple]:
    yield a[0] + b[0], f"{_in(a, 1)}+{_in(b, 1)}", 1
    yield a[0] - b[0], f"{_in(a, 1)}-{_in(b, 2)}", 1
    yield b[0] - a[0], f"{_in(b, 1)}-{_in(a, 2)}", 1
    yield a[0] * b[0], f"{_in(a, 2)}*{_in(b, 2)}", 2
    for x, y in ((a, b), (b, a)):
        if y[0] != 0:
            value = Fraction(x[0]) / y[0]
            # Whole values stay int: Fraction is ten times slower, and most values are whole.
            yield value.numerator if value.denominator == 1 else value, f"{_in(x, 2)}/{_in(y, 3)}", 2


def _in(item: tuple, binding: int) -> str:
    return item[1] if item[2] >= binding else f"({item[1]})"


DATASET = DataSet(
    name="countdown",
    parse=parse,
    fetch="the parquet file of Countdown-Tasks-3to4, or JSON lines with nums and target",
    addresses=("hf:Jiayi-Pan/Countdown-Tasks-3to4@408f70d177020686d34a56bba5952feb45aaaee4",),
    patterns=("*countdown*", "*.parquet"),
    split="train",
    heldout=1024,
    grader="countdown",
    max_prompt=160,
    max_answer=32,
    max_chain=480,
)
