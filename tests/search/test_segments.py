"""Segments of a text, what is copied, and chains that are of no use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_likelihood.search.segments import SHORTEST, complaint, copied, replaced, segments

LONG = "w" * 120


@given(st.lists(st.sampled_from([*"ab \n$\\[]{}", "\n\n", LONG]), max_size=60).map("".join))
def test_segments_joined_are_the_text_and_none_is_short(text):
    parts = segments(text)
    assert "".join(parts) == text
    assert len(parts) == 1 or all(len(part.strip()) >= SHORTEST for part in parts)


def test_blank_lines_cut_else_line_ends():
    assert segments(f"{LONG}\n\n{LONG}\nb\n \n{LONG}") == [f"{LONG}\n\n", f"{LONG}\nb\n \n", LONG]
    assert segments(f"{LONG}\n{LONG}") == [f"{LONG}\n", LONG]
    assert segments(LONG) == [LONG] and segments("") == [""]


def test_short_pieces_join_the_next_and_the_last_the_one_before():
    assert segments(f"a\n\n{LONG}\n\nb") == [f"a\n\n{LONG}\n\nb"]
    whole, short = "w" * SHORTEST, "w" * (SHORTEST - 1)
    assert segments(f"{whole}\n\n{whole}\n\n{whole}") == [f"{whole}\n\n", f"{whole}\n\n", whole]
    assert segments(f"{short}\n\n{whole}") == [f"{short}\n\n{whole}"]


@pytest.mark.parametrize("display", ["\\[x\n\ny\\]", "$$x\n\ny$$", "\\begin{align*}x\n\ny\\end{align*}"])
def test_a_displayed_formula_is_whole(display):
    assert segments(f"{LONG} {display}\n\n{LONG}") == [f"{LONG} {display}\n\n", LONG]


def test_another_text_keeps_the_white_space_around_it():
    assert replaced("  old\n\n", " new\n") == "  new\n\n"
    assert replaced("\n", "new") == "\nnew"


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_the_longest_run_is_that_of_all_pairs(a, b):
    best = max(
        (
            n
            for i in range(len(a))
            for j in range(len(b))
            for n in range(13)
            if a[i : i + n] == b[j : j + n] and i + n <= len(a) and j + n <= len(b)
        ),
        default=0,
    )
    assert copied(" ".join(a), " ".join(b)) == (best / len(b) if b else 0)


def test_copied_is_a_share_of_the_answer():
    assert copied("so a b c it is", "a b c d") == 0.75 and copied("x", "a b") == 0 and copied("x", "") == 0


def test_complaints():
    words = [f"w{i}" for i in range(40)]
    assert complaint(" ".join(words)) == ""
    assert complaint(" ".join([*words, "Wait,", "no."])) == "still thinking at its end"
    assert complaint(" ".join(["wait", *words])) == ""
    assert complaint(" ".join(["one", "two", "three"] * 10)) == "repeats itself"
    assert complaint("a short chain of words") == ""
