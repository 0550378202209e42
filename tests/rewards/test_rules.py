"""Rules accept and reject what their definitions say, and coins fall the same after a resume."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.grading.graders import exact_match
from rl_likelihood.rewards import rules

TAGS = rules.Tags("<think>", "</think>", "<answer", "</answer")
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True, database=None)

GOOD = [
    "<think>chain</think>\n<answer>42</answer>",
    "<think></think><answer></answer>",
    "  \n<think>\na\nb\n</think> \t\n\n<answer>\n42\n</answer>\n ",
    "<think>é\x00 < > </ <b></think><answer>x</answer>",
    "<think>chain</think>\n<answer>42</answer",  # where the sampler stops
    "<think>an <answer without its bracket</think><answer>42</answer>",
]
BAD = [
    "",
    "42",
    "<think>chain</think>",
    "<answer>42</answer>",
    "chain</think>\n<answer>42</answer>",  # the prefilled tag forgotten
    "<think>chain<answer>42</answer>",
    "<think>chain</think>\n<answer>42",
    "<think>chain</think>\n<answer>42</answe",
    "<think>chain</think>\n42</answer>",
    "<think>chain</think>\n<answer>42</answers>",
    "<think>chain</think>\n<answers>42</answer>",
    "<think>chain</think> so <answer>42</answer>",
    "so <think>chain</think><answer>42</answer>",
    "<think>chain</think><answer>42</answer>.",
    "<think>chain</think><answer>42</answer><answer>43</answer>",
    "<think>a</think><think>b</think><answer>42</answer>",
    "<think><think>chain</think><answer>42</answer>",
    "<think>chain</think></think><answer>42</answer>",
    "<think>chain</think><answer><answer>42</answer>",
    "<think>chain</think><answer>42</answer></answer>",
    "<answer>42</answer><think>chain</think>",
    "</think><think>chain<answer>42</answer>",
    "<think>chain</think></answer>42<answer>",
    "<think>chain<answer>42</answer></think>",
    "<think>chain<answer>42</think></answer>",
    "<THINK>chain</THINK><ANSWER>42</ANSWER>",
    "<think>" * 3 + "chain" + "</think>" * 3 + "<answer>42</answer>",
]


@pytest.mark.parametrize("text", GOOD)
def test_format_accepts(text):
    assert rules.format(text, TAGS) == 1.0
    assert rules.tag_count(text, TAGS) == 1.0


@pytest.mark.parametrize("text", BAD)
def test_format_rejects(text):
    assert rules.format(text, TAGS) == 0.0


def test_format_obeys_the_tags_of_the_settings():
    tags = rules.Tags("[t]", "[/t]", "[a", "[/a")
    assert rules.format("[t]x[/t] [a>5[/a>", tags) == 1.0
    assert rules.format("[t]x[/t] [a>5[/a", tags) == 1.0
    assert rules.format(GOOD[0], tags) == 0.0
    assert rules.tag_count("[t]x[/t] [a>5", tags) == 0.75
    assert rules.tag_count(GOOD[0], tags) == 0.0


@pytest.mark.parametrize(
    "text, count",
    [
        ("", 0),
        ("<think>chain", 0.25),
        ("chain</think>\n<answer>42</answer>", 0.75),
        ("</answer><answer></think><think>", 1),  # it counts, it does not order
        ("<think><think>a</think><answer>1</answer>", 0.75),
        ("<think>a</think><answer>1</answer><answer>2</answer>", 0.5),
        ("<think>a</think><answer>1</answer", 1),
        ("<think>a</think><answer>1</answer>2</answer", 0.75),
        ("<think>a</think><answer", 0.5),
    ],
)
def test_tag_count(text, count):
    assert rules.tag_count(text, TAGS) == count


OPEN_R1 = [
    ("<think>\nchain\n</think>\n<answer>\n42\n</answer>", 1),
    ("<think>\nchain\n</think>\n<answer>\n42\n</answer", 1),  # where the sampler stops
    ("<think>\n\n</think>\n<answer>\n\n</answer>", 1),
    ("<think>\n</think>\n<answer>\n\n</answer>", 0),  # each block holds a line, be it empty
    ("<think>\n\n</think>\n<answer>\n</answer>", 0),
    ("<think>chain</think>\n<answer>42</answer>", 0),
    ("<think>\nchain\n</think><answer>\n42\n</answer>", 0),
    ("<think>\nchain\n</think>\n\n<answer>\n42\n</answer>", 0),
    (" <think>\nchain\n</think>\n<answer>\n42\n</answer>", 0),
    ("<think>\nchain\n</think>\n<answer>\n42\n</answer>.", 0),
    ("<think>\nchain\n</think>\n<answer>\n42\n</answer>\nmore", 1),  # $ is the end of any line, as published
    ("<think>\na\n</think>\n<answer>\n1\n</answer>.\n</answer>", 1),
    ("<think>\n<think>\na\n</think>\n<answer>\n1\n</answer>", 1),  # and further tags do not matter to it
    ("", 0),
]


@pytest.mark.parametrize("text, reward", OPEN_R1)
def test_format_open_r1(text, reward):
    assert rules.format_open_r1(text, TAGS) == reward


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "<answer", "</answer", "\n", " ", "x", ">"]
tagged = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
open_r1_like = st.lists(
    st.sampled_from(["<think>\n", "\n</think>\n<answer>\n", "\n</answer>", "\n", "x", *PIECES]), max_size=8
).map(lambda pieces: "<think>\n" + "".join(pieces))


@PROPERTY
@given(st.one_of(tagged, open_r1_like))
def test_open_r1_is_the_published_pattern(text):
    pattern = re.compile("^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$", re.DOTALL | re.MULTILINE)
    completed = text + ">" if text.endswith("\n</answer") else text
    assert rules.format_open_r1(text, TAGS) == float(pattern.match(completed) is not None)


@PROPERTY
@given(tagged)
def test_format_is_two_blocks_without_tags_inside(text):
    """Against the definition as a regular expression, which is fine for short texts."""
    closed = text.strip() + (">" if text.strip().endswith("</answer") else "")
    match = re.fullmatch(r"<think>(.*)</think>\s*<answer>(.*)</answer>", closed, re.DOTALL)
    inside = "".join(match.groups()) if match else ""
    alone = match is not None and not re.search("</?think>|</?answer>", inside)
    assert rules.format(text, TAGS) == float(alone)
    if alone:
        assert rules.tag_count(text, TAGS) == 1.0


def test_scaled_is_right_wrong_unreadable():
    assert [rules.scaled(x) for x in (True, False, None)] == [1.0, 0.1, 0.0]
    assert [rules.scaled(x, (100, 10, 0)) for x in (True, False, None)] == [100.0, 10.0, 0.0]
    assert [rules.scaled(x, rules.TINYZERO) for x in (True, False, None)] == [1.0, 0.1, 0.0]
    assert [rules.scaled(x, (0.0, -1.0, -2.0)) for x in (True, False, None)] == [0.0, -1.0, -2.0]


DISTINCT = [f"w{i}" for i in range(10)]


@pytest.mark.parametrize(
    "text, reward",
    [
        ("", 0),
        ("one two three", 0),
        ("a " * 18, 0),  # nine overlapping runs of ten
        ("a " * 19, -1),
        (" ".join(DISTINCT * 9), 0),
        (" ".join(DISTINCT * 10), -1),
        ("_".join(DISTINCT * 10), -1),  # split on underscores too
        ("\n\t".join(DISTINCT * 10), -1),
        (" ".join(" ".join(DISTINCT) + f" sep{i}" for i in range(10)), -1),  # need not follow one another
        (" ".join(" ".join(DISTINCT) + f" sep{i}" for i in range(9)), 0),
        (" ".join(" ".join(DISTINCT[:9]) + f" sep{i}" for i in range(50)), 0),  # nine words are not ten
        ("a" * 5000, 0),
    ],
)
def test_repetition(text, reward):
    assert rules.repetition(text, TAGS) == reward


WORDS = ("but", "wait", "let me check")


@pytest.mark.parametrize(
    "texts, rate",
    [
        ([], 0),
        ([""], 0),
        (["... 1 + 1"], 0),
        (["But no"], 50),
        (["WAIT, but wait!"], 100),
        (["butter await waiting rebut"], 0),  # whole words
        (["so let me\n check it"], 20),
        (["Let me, check"], 100 / 3),
        (["let me go and check"], 0),
        (["wait" + " x" * 9, "y " * 10], 5),  # of all texts together, not the mean of their rates
        (["but_wait"], 100),
        (["it's but 3.5"], 25),  # it's, but, 3, 5
    ],
)
def test_transition_rate(texts, rate):
    assert rules.transition_rate(texts, WORDS) == pytest.approx(rate)


def test_transition_rate_counts_the_longest_phrase_alone():
    text = ["but wait and wait but"]
    assert rules.transition_rate(text, ("but", "wait", "But Wait")) == pytest.approx(60)
    assert rules.transition_rate(text, ("but", "but wait", "but wait and wait for me")) == pytest.approx(40)
    assert rules.transition_rate(text, ("", " ?! ", "but", "BUT")) == pytest.approx(40)
    assert rules.transition_rate(["I don\u2019t, I don't"], ("don't",)) == pytest.approx(50)
    assert rules.transition_rate(text, ()) == 0


UID = np.arange(1000, dtype=np.int32)


def test_random_reward_is_a_fair_coin():
    draws = rules.random_reward(UID, 8, seed=0)
    assert draws.shape == (1000, 8) and draws.dtype == np.float32 and set(np.unique(draws)) == {0.0, 1.0}
    # 8000 throws have a standard deviation of 0.0056; 1000 of one row 0.016; 8 of one group 0.18.
    assert abs(draws.mean() - 0.5) < 0.02
    assert np.abs(draws.mean(0) - 0.5).max() < 0.06
    assert draws.mean(1).std() == pytest.approx(np.sqrt(0.25 / 8), rel=0.1), "rows are independent"


def test_a_resumed_run_draws_the_same():
    whole = rules.random_reward(UID[:64], 8, seed=3)
    np.testing.assert_array_equal(rules.random_reward(UID[40:64], 8, seed=3), whole[40:])
    np.testing.assert_array_equal(rules.random_reward(UID[:64][::-1].copy(), 8, seed=3), whole[::-1])
    np.testing.assert_array_equal(rules.random_reward(UID[:64], 3, seed=3), whole[:, :3])
    np.testing.assert_array_equal(rules.random_reward(UID[:64].astype(np.int64), 8, seed=3), whole)


def test_other_seeds_and_prompts_draw_other_numbers():
    one, other = rules.random_reward(UID, 8, seed=0), rules.random_reward(UID, 8, seed=1)
    assert abs((one == other).mean() - 0.5) < 0.02
    assert abs((one[:-1] == one[1:]).mean() - 0.5) < 0.02
    assert (rules.random_reward(UID, 8, seed=-1) != one).any(), "a negative seed is a seed"
    assert rules.random_reward(UID[:0], 8, seed=0).shape == (0, 8)


def judge(text):
    """Every rule on one text; each in its range."""
    assert rules.format(text, TAGS) in (0.0, 1.0)
    assert rules.format_open_r1(text, TAGS) in (0.0, 1.0)
    assert rules.tag_count(text, TAGS) in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert rules.repetition(text, TAGS) in (0.0, -1.0)
    assert 0 <= rules.transition_rate([text], WORDS) <= 100
    rewards = rules.majority_vote([[text, None, text[::-1], text]], exact_match)
    assert rewards[0, 0] == rewards[0, 3] == 1 and rewards[0, 1] == 0


@PROPERTY
@given(st.one_of(st.text(), tagged, open_r1_like))
def test_rules_are_total(text):
    judge(text)


HOSTILE = [
    "\x00" * 1_000_000,
    "_" * 1_000_000,
    "a'" * 500_000,
    "a " * 500_000,
    "a_" * 500_000,
    "\u0130\u2019" * 500_000,
    "<think>" * 150_000,
    "</think>" * 125_000,
    "<answer" * 150_000,
    "<think>" * 75_000 + "</think>" * 60_000,
    "<think>\n" + "\n</think>\n<answer>\n" * 50_000,
    "<think>\n" + "\n</think>\n<answer>\n" * 25_000 + "\n</answer" * 50_000,
    "<think>" + " " * 1_000_000 + "</think>",
    "<think></think>" + " \n" * 500_000 + "<answe",
    " ".join(map(str, range(150_000))),
    "let me " * 140_000,
    "let me check " * 75_000,
    "\ud800</think><answer>\udfff</answer>",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:24]))
def test_hostile_text_is_only_judged(text):
    """A linear pass over these takes milliseconds to a second; a quadratic one would not come back."""
    judge(text)


def test_a_prefix_ends_where_a_token_of_the_reference_does():
    """`ends` in bytes: "né" is three."""
    reference, ends = "née là", frozenset({3, 5, 8})
    for said, right in (("né", 1), ("née ", 0), ("née l", 0), ("née là ", 1), ("ne", 0), ("", 0), (None, 0)):
        assert rules.token_prefix(reference, ends, said) == right, said
