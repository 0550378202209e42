"""Which scorers of reasoning_gym do not test the question?

    python -m bench.gym_scorers [--items=10] [--only=NAME,NAME]

Each data set's own rule (as `grading.gym` asks it) is shown wrong answers to its own questions: constants, the answers
to its other questions, parts of the question, and its own answer with one character changed or with more around it (a
sign, a denial, a second answer). A rule that calls many of them right tests something else. Prints a line for every
data set where any is right.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys

from rl_likelihood.grading import gym

CONSTANTS = (
    *("0", "1", "2", "-1", "10", "yes", "no", "Yes", "No"),
    *("True", "False", "true", "A", "B", "x", "C", "hello", "[]"),
    *("{}", "()", "None", "none", "N/A", "impossible", "-", ".", "1 2 3"),
    *("1*2*3*4", "1+2", "x + C", "0.5", "1/2", "\\", "[[0]]", "a b", "the answer"),
    *("IMPOSSIBLE", "infeasible", "Yes, yes", "No solution", "0 0", "1,1", "[1]", "[0, 0]"),
)


class _Late(Exception):
    pass


def right(dataset: str, items: list, i: int, answer: str) -> bool:
    def late(*_):
        raise _Late

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, 3.0)  # of CPU time, because the machine may be busy
    try:
        try:
            return gym.gym_match(gym.pack(dataset, {}, items[i]), answer) is True
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _Late:  # it may also be raised in `finally`
        return False


def changed(text: str, rng: random.Random) -> str:
    """One letter or digit made another one."""
    places = [i for i, c in enumerate(text) if c.isalnum()]
    if not places:
        return text + "x"
    i = rng.choice(places)
    pool = "0123456789" if text[i].isdigit() else "abcdefghijklmnopqrstuvwxyz"
    c = rng.choice([p for p in pool if p != text[i].lower()])
    return text[:i] + (c.upper() if text[i].isupper() else c) + text[i + 1 :]


def more(answer: str, other: str) -> list[str]:
    """An answer that also says something else, denies itself or has another sign."""
    denied = [f"not {answer}", f"{answer} is wrong", f"anything but {answer}", f"not {answer} -> {answer}"]
    hedged = [f"{answer} or 7", f"{answer} or {other}", f"{answer}\n{other}", f"{other} {answer}"]
    marked = [
        f"-{answer}",
        f"{answer}, {answer}",
        f"{answer}0",
        f"{answer} 1",
        f"{answer} x",
        f"{answer}...C0",
        f"({answer}",
    ]
    return [text for text in denied + hedged + marked if text not in ("-0", "-0.0")]


def parts(question: str) -> list[str]:
    """The question, its paragraphs and its last lines."""
    paragraphs = [p.strip() for p in question.split("\n\n")]
    grids = [p.partition(":\n")[2] for p in paragraphs if ":\n" in p]
    lines = [line.strip() for line in question.splitlines()[-6:]]
    return [p for p in (question.strip(), *paragraphs, *grids, *lines) if p]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=10)
    parser.add_argument("--only", default="")
    a = parser.parse_args()
    from reasoning_gym import factory

    names = a.only.split(",") if a.only else sorted(factory.DATASETS)
    columns = ("constant", "other", "copied", "changed", "more")
    print(f"{'data set':32s} {'own':>6s}", *(f"{c:>9s}" for c in columns), " examples")
    for name in names:
        try:
            data = factory.create_dataset(name, size=a.items, seed=7)
            items = [data[i] for i in range(a.items)]
        except Exception as error:  # whatever it raises
            print(f"{name:32s} makes no items: {type(error).__name__}: {error}")
            continue
        if items[0]["answer"] is None:
            continue
        rng = random.Random(0)
        answers = [str(item["answer"]).strip() for item in items]
        hits: dict[str, list[tuple[int, str]]] = {c: [] for c in columns}
        tried = dict.fromkeys(hits, 0)
        own = sum(right(name, items, i, answers[i]) for i in range(a.items))
        for i, answer in enumerate(answers):
            wrong = {
                "constant": [c for c in CONSTANTS if c != answer],
                "other": sorted({x for x in answers if x != answer}),
                "copied": sorted(set(parts(items[i]["question"])) - {answer}),
                "changed": [changed(answer, rng) for _ in range(8)],
                "more": more(answer, answers[i - 1]),
            }
            for family, texts in wrong.items():
                for text in texts:
                    tried[family] += 1
                    if right(name, items, i, text):
                        hits[family].append((i, text))
        if any(hits.values()) or own < a.items:
            cells = " ".join(f"{len(hits[f]):3d}/{tried[f]:<5d}" for f in hits)
            some = [(f, i, text[:40], answers[i][:40]) for f in hits for i, text in hits[f][:2]]
            print(f"{name:32s} {own:2d}/{a.items:<3d} {cells}  {some}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
