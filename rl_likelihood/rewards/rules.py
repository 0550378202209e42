"""Rewards from the text of a response: its format, its repetitions, votes among answers, and a random control.

Computed on the host. Every function accepts any text, runs in linear time, and never raises. `text` is a whole response
that begins with the prompt's `<think>`: "<think>chain</think>\\n<answer>42</answer>". Sampling stops at `</answer`, so
a text that ends there counts as ending in `</answer>`, as in grading.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import islice

import numpy as np
from jaxtyping import Float32, Int

from rl_likelihood.shapes import Tags

Answers = Sequence[str | None]  # of one group, None where no answer could be extracted
Same = Callable[[str, str | None], bool]  # a grader: (reference, answer) -> whether the answer is right
Key = Callable[[str], Hashable]  # answers with equal keys are one candidate in a vote


# ---------------------------------------------------------------------------------------- format


def _closed(text: str, answer_close: str) -> str:
    return text + ">" if text.endswith(answer_close) else text


def _four(tags: Tags) -> tuple[str, str, str, str]:
    return tags.think_open, tags.think_close, tags.answer_open + ">", tags.answer_close + ">"


def format(text: str, tags: Tags) -> float:
    """1 if the response is one think block and one answer block, with only white space around and between, else 0."""
    # Each of the four tags must occur exactly once, in order (DeepSeek-R1-Zero; RLPR; NOVER's format gate).
    text = _closed(text.strip(), tags.answer_close)
    four = think_open, think_close, answer_open, answer_close = _four(tags)
    if any(text.count(tag) != 1 for tag in four):
        return 0.0
    think, _, answer = text.partition(think_close)
    answer = answer.lstrip()
    blocks = (think, think_open), (answer, answer_open)
    if not all(block.startswith(tag) for block, tag in blocks):
        return 0.0
    return float(answer.removeprefix(answer_open).endswith(answer_close))


def format_open_r1(text: str, tags: Tags) -> float:
    """1 if the text matches open-r1's stricter rule, with each tag on its own line: it starts with this pattern.

        ^<think>\\n.*?\\n</think>\\n<answer>\\n.*?\\n</answer>$        (. any character, $ the end of any line)

    As published, it accepts more tags inside the blocks, and more lines after the match.
    """
    start, middle, end = "<think>\n", "\n</think>\n<answer>\n", "\n</answer>\n"
    if not text.startswith(start):
        return 0.0
    # The first `middle` leaves the most text to search for `end`. If it does not match, no later one does.
    split = text.find(middle, len(start))
    closed = _closed(text, "\n</answer") + "\n"
    return float(split >= 0 and closed.find(end, split + len(middle)) >= 0)


def tag_count(text: str, tags: Tags) -> float:
    """0.25 for each of the four tags that occurs exactly once, at any position (open-r1)."""
    text = _closed(text.rstrip(), tags.answer_close)
    return 0.25 * sum(text.count(tag) == 1 for tag in _four(tags))


TINYZERO = (1.0, 0.1, 0.0)  # TinyZero's countdown: right; a wrong or illegal equation; no equation


def scaled(right: bool | None, scale: Sequence[float | int] = (1.0, 0.1, 0.0)) -> float:
    """The value of an outcome. `scale`: (right, wrong, unreadable), by default in Kwiatkowski et al.'s ratio
    100 : 10 : 0. `right` is None for an answer that cannot be read."""
    value_right, wrong, unreadable = scale
    if right is None:
        return float(unreadable)
    return float(value_right if right else wrong)


# ---------------------------------------------------------------------------------------- words


def repetition(text: str, tags: Tags) -> float:
    """-1 if some sequence of ten words occurs at least ten times (occurrences may overlap), else 0.

    Words are separated by white space and `_` (RLPR). Unlike RLPR's code, the penalty is also added to a reward of
    exactly 0.
    """
    words = text.replace("_", " ").split()
    counts = Counter(zip(*(islice(words, i, None) for i in range(10)), strict=False))
    return -1.0 if max(counts.values(), default=0) >= 10 else 0.0


_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")  # letters and digits, apostrophes inside


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold().replace("\u2019", "'"))


def transition_rate(texts: Sequence[str], words: Sequence[str]) -> float:
    """Occurrences of the listed words or phrases ("but", "let me check") per 100 words of all texts together.

    Only whole words match, in upper or lower case. Punctuation and white space between the words of a phrase are
    ignored. If several phrases begin at a word, only the longest counts: "but wait" is not also a "but" and a "wait".
    """
    by_first: dict[str, list[tuple[str, ...]]] = {}
    for phrase in sorted({tuple(_words(w)) for w in words} - {()}, key=len, reverse=True):
        by_first.setdefault(phrase[0], []).append(phrase)
    count = total = 0
    for text in texts:
        spoken = _words(text)
        total += len(spoken)
        i = 0
        while i < len(spoken):
            matches = (p for p in by_first.get(spoken[i], ()) if tuple(spoken[i : i + len(p)]) == p)
            phrase = next(matches, None)
            count += phrase is not None
            i += len(phrase) if phrase else 1
    return 100.0 * count / max(total, 1)


# ---------------------------------------------------------------------------------------- votes and chance


def _vote(answers: Answers, key: Key) -> tuple[str | None, int]:
    """(the winning answer, as its first voter wrote it; its votes), or (None, 0) without any answer."""
    votes: Counter[Hashable] = Counter()
    first: dict[Hashable, str] = {}
    for answer in answers:
        if answer is not None:
            k = key(answer)
            votes[k] += 1
            first.setdefault(k, answer)
    if not votes:
        return None, 0
    winner = max(votes, key=votes.__getitem__)  # a tie goes to the candidate that was inserted first
    return first[winner], votes[winner]


def plurality(answers: Answers, key: Key = str.strip) -> str | None:
    """The most frequent answer; in a tie, the first one. It need not have a majority.

    Rows without an answer (None) have no vote. The result is None if no row has an answer. Answers with equal `key` are
    the same candidate; by default, white space at both ends is ignored.
    """
    return _vote(answers, key)[0]


def majority_vote(groups: Sequence[Answers], same: Same, key: Key = str.strip) -> Float32[np.ndarray, "P G"]:
    """R_i = 1 if answer i equals the plurality of its group by `same`, else 0 (TTRL, 2504.16084).

    `groups`: P groups of G answers. A group without any answer gets only 0. To vote with more samples than are trained
    on, pass all of them and use the first columns of the result.
    """
    labels = [plurality(answers, key) for answers in groups]
    return _agreement(groups, labels, same)


def token_prefix(reference: str, ends: frozenset[int], answer: str | None) -> float:
    """1 if the answer is a prefix of the reference, in bytes, that ends at a token boundary (RPT, 2506.08007), else 0.

    `ends`: the byte offsets at which the reference's tokens end.
    """
    answer_bytes = (answer or "").strip().encode(errors="surrogatepass")
    return float(
        len(answer_bytes) in ends and reference.strip().encode(errors="surrogatepass").startswith(answer_bytes)
    )


def vote_share(groups: Sequence[Answers], key: Key = str.strip) -> Float32[np.ndarray, "P G"]:
    """R_i = the share of the group's rows whose answer is the same candidate as answer i (EMPO, 2504.05812).

    A row without an answer gets 0, but it counts in the denominator.
    """
    out = np.zeros((len(groups), max(map(len, groups), default=0)), np.float32)
    for row, answers in zip(out, groups, strict=True):
        keys = [None if answer is None else (key(answer),) for answer in answers]
        votes = Counter(keys)
        row[: len(keys)] = [0.0 if k is None else votes[k] / len(keys) for k in keys]
    return out


def _agreement(groups: Sequence[Answers], labels: Answers, same: Same) -> Float32[np.ndarray, "P G"]:
    out = np.zeros((len(groups), max(map(len, groups), default=0)), np.float32)
    for row, answers, label in zip(out, groups, labels, strict=True):
        if label is not None:
            row[:] = [answer is not None and same(label, answer) for answer in answers]
    return out


def vote_diagnostics(
    groups: Sequence[Answers], references: Sequence[str], same: Same, key: Key = str.strip
) -> dict[str, float]:
    """TTRL's metrics of a vote, as means over the P groups. They use the references, which the vote does not.

        label_accuracy      share of groups whose plurality is right; a group without any answer is wrong
        reward_accuracy     share of samples whose reward by vote equals the reward by reference
        majority_ratio      votes for the plurality over all samples, including samples without an answer
        ground_truth_ratio  share of samples that are right

    reward_accuracy can be high although label_accuracy is low. A wrong sample that differs from a wrong plurality earns
    0 by vote and 0 by reference.
    """
    elected = [_vote(answers, key) for answers in groups]
    labels = [label for label, _ in elected]
    by_vote, by_reference = _agreement(groups, labels, same), _agreement(groups, references, same)
    right = [label is not None and same(ref, label) for ref, label in zip(references, labels, strict=True)]
    size = max(by_vote.size, 1)
    return {
        "label_accuracy": float(sum(right)) / max(len(right), 1),
        "reward_accuracy": float((by_vote == by_reference).sum()) / size,
        "majority_ratio": float(sum(votes for _, votes in elected)) / size,
        "ground_truth_ratio": float(by_reference.sum()) / size,
    }


_COIN = 0x636F696E  # separates this random stream from others with the same seed


def random_reward(uid: Int[np.ndarray, "P"], group_size: int, seed: int) -> Float32[np.ndarray, "P {group_size}"]:
    """R_i = 1 with probability 1/2, else 0, independent of the response: a control from which nothing can be learned.

    The numbers depend only on (seed, uid, row). So a resumed run draws the same numbers, and a row's number does not
    depend on the size of its group.
    """
    draws = [np.random.default_rng((_COIN, seed % 2**32, int(u) % 2**32)).random(group_size) for u in uid]
    return (np.asarray(draws).reshape(len(uid), group_size) < 0.5).astype(np.float32)
