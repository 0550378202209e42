"""Splits do not leak and do not move; bad input is named."""

from __future__ import annotations

import pytest

from rl_likelihood.data.worked_examples import WORKED_EXAMPLES
from rl_likelihood.datasets.procedural import PRESETS
from rl_likelihood.datasets.questions import question_key, variant_key
from rl_likelihood.datasets.sources import DataConfig, load
from rl_likelihood.errors import UserError

BOTH = DataConfig("reasoning_gym", ("basic_arithmetic", "chain_sum"), train_size=301, heldout_size=101)


def expression(prompt: str) -> str:
    return prompt.removesuffix(".").removeprefix("Calculate ").rpartition(": ")[2]


def test_procedural_sets_are_distinct_and_share_nothing():
    train, heldout, report = load(BOTH)
    assert (len(train), len(heldout)) == (301, 101)
    keys = [expression(e.prompt) for e in train + heldout]  # the sum itself, however it is worded
    assert len(set(keys)) == len(keys)
    worked = {expression(q) for shots in WORKED_EXAMPLES.values() for q, _, _ in shots}
    assert not worked & set(keys)
    assert len({e.id for e in train + heldout}) == 402
    assert report.rows == 402 + report.duplicates + report.overlap_removed
    assert report.bad_rows == ()


def test_variants_of_a_generated_question_are_questions_on_one_side():
    """As "Spell Lew" and "Spell lew": two questions, of which neither is trained on if the other is held out."""
    task = ("spell_backward(min_word_len=3, max_word_len=4)",)
    train, heldout, report = load(DataConfig("reasoning_gym", task, train_size=1200, heldout_size=150))
    assert len({question_key(e.prompt) for e in train}) == 1200 > len({variant_key(e.prompt) for e in train})
    assert not {variant_key(e.prompt) for e in train} & {variant_key(e.prompt) for e in heldout}
    assert report.overlap_removed


def test_tasks_are_mixed_evenly_from_the_first_row():
    train, heldout, _ = load(BOTH)
    assert [e.task for e in heldout[:4]] == ["basic_arithmetic", "chain_sum"] * 2
    assert sum(e.task == "chain_sum" for e in train) == 150
    assert sum(e.task == "chain_sum" for e in heldout[:50]) == 25


def test_answers_follow_the_rules_of_precedence():
    train, heldout, _ = load(BOTH)
    for e in train + heldout:
        assert int(e.answer) == eval(expression(e.prompt))  # the oracle, on our own text
    # The generator works from left to right here; the set must hold cases where that is wrong.
    assert any(" * " in e.prompt.partition(" + ")[2] for e in train)


def test_questions_are_as_easy_as_the_presets_say():
    train, heldout, _ = load(BOTH)
    for e in train + heldout:
        terms = [int(t) for t in expression(e.prompt).split() if t not in "+-*"]
        assert len(terms) in (2, 3)
        assert max(terms) <= (10 if e.task == "basic_arithmetic" else 99)
        assert "(" not in e.prompt and "/" not in e.prompt
        assert e.task == "basic_arithmetic" or "*" not in e.prompt
        assert e.prompt.endswith(".") and not e.prompt.endswith(" .")
        assert e.prompt == PRESETS[e.task].wording.format(expression(e.prompt))


def test_same_settings_same_rows_and_other_seed_other_rows():
    assert load(BOTH) == load(BOTH)
    first, second = (
        load(DataConfig("reasoning_gym", ("chain_sum",), train_size=200, heldout_size=50, seed=s)) for s in (0, 1)
    )
    # The generator's own neighbouring seeds share all items but one.
    assert len({e.prompt for e in first[0]} & {e.prompt for e in second[0]}) < 60
    assert first[1] != second[1]


def test_sizes_by_default_are_2000_and_100():
    train, heldout, _ = load(DataConfig("reasoning_gym", ("chain_sum",)))
    assert (len(train), len(heldout)) == (2000, 100)


def test_more_heldout_questions_keep_the_first_ones():
    small, large = (load(DataConfig("reasoning_gym", ("chain_sum",), train_size=9, heldout_size=n)) for n in (20, 40))
    assert large[1][:20] == small[1]
    assert large[2].overlap_removed < 20  # training draws are not the held-out ones again


def test_a_used_up_task_is_refused_with_what_there_is():
    cfg = DataConfig("reasoning_gym", ("basic_arithmetic",), train_size=50_000, heldout_size=10)
    with pytest.raises(UserError, match=r"train_size = 50000 .* ran out after (\d+); set .* at most \1$") as e:
        load(cfg)
    assert 11_500 < int(str(e.value).rsplit(" ", 1)[1]) <= 11**2 * 3 + 11**3 * 9


def test_worked_examples_are_right_and_in_the_wording_of_their_task():
    # Tasks that give chains have no need of worked examples.
    without_chains = {name for name, preset in PRESETS.items() if preset.fault_rate is None and not preset.environment}
    assert set(WORKED_EXAMPLES) == without_chains
    for task, shots in WORKED_EXAMPLES.items():
        assert len(shots) >= 3
        for question, chain, answer in shots:
            assert question == PRESETS[task].wording.format(expression(question))
            assert int(answer) == eval(expression(question))
            assert chain.endswith(f"= {answer}.") and "\n" not in chain


@pytest.mark.parametrize(
    "cfg, words",
    [
        (DataConfig("reasoning_gym", (), train_size=5), "data.tasks is empty"),
        (
            DataConfig("reasoning_gym", ("chainsum",), train_size=5),
            "data.tasks has 'chainsum'; did you mean 'chain_sum'? It must be basic_arithmetic, one_operation, "
            "chain_sum, faulty_losses, calculator, or one of the ",
        ),
        (DataConfig("reasoning_gym", ("chain_sum",) * 2, train_size=5), "names a task twice"),
        (DataConfig("reasoning_gym", ("chain_sum",), train_size=0), "data.train_size is 0"),
        (DataConfig("files"), "data.train_path is empty"),
        (DataConfig("prepared"), "data.train_path is empty"),
    ],
)
def test_bad_settings_are_refused(cfg, words):
    with pytest.raises(UserError) as e:
        load(cfg)
    assert words in str(e.value)


def test_an_evaluation_needs_no_training_questions():
    cfg = DataConfig("reasoning_gym", ("chain_sum",), train_size=9, heldout_size=20)
    assert load(cfg, training=False)[:2] == ([], load(cfg)[1]), "the same questions as in training"
