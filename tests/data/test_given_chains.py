"""Chains of the data: the batches planned for them, and rows that the model has too few positions for."""

import json
from pathlib import Path

import pytest

from rl_likelihood.config import build
from rl_likelihood.data.prompts import completion_ids
from rl_likelihood.errors import UserError
from rl_likelihood.rollouts.source import make_source
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.task import abstract_batch, load
from rl_likelihood.training.micro_batch import longest_batch
from rl_likelihood.training.warm_start import chains_to_learn
from tests.rollouts import calculator
from tests.runs import small_config

POSITIONS = 2048  # of the small model
SFT = {"reward__name": "sft", "reward__sft_chain": "both"}
WARM = {"warm_start__steps": 1, "warm_start__chains": "given", "warm_start__prompts_per_step": 2}


def config(folder, *chains, **changes):
    """Rows with these chains, and one held-out row. A byte is a token."""
    rows = [
        {"id": f"q{i}", "prompt": f"{i}+1", "answer": "2", "chain": chain} for i, chain in enumerate((*chains, "so"))
    ]
    paths = {"train": rows[:-1], "heldout": rows[-1:]}
    for name, of_side in paths.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_side))
    sides = {f"data__{name}_path": str(folder / f"{name}.jsonl") for name in paths}
    sizes = {"data__train_size": 0, "data__heldout_size": 0, "eval__prompts": 1, "prompt__examples": 0}
    return build(small_config(**{"data__source": "files", **sides, **sizes, **changes}))


@pytest.mark.parametrize("on", ["none", "answer", "both"])
def test_the_planned_batch_has_the_width_of_the_given_one(on, tmp_path):
    c = config(tmp_path, "ab", "x" * 500, reward__name="sft", reward__sft_chain=on)
    task, params = load(c)
    batch = make_source(task, make_devices(c), tmp_path, 0, None).next(0, params).batch
    tags = len(task.fmt.close_think_ids)
    width = tags + c.prompt.max_answer + 500 * (on != "none")
    assert batch.completion.shape[-1] == width
    assert abstract_batch(c, task.fmt, task.longest_chain).completion.shape[-1] == width
    assert longest_batch(task).completion.shape[-1] == width
    without_data = tags + c.prompt.max_answer + c.sampler.max_chain * (on != "none")
    assert abstract_batch(c, task.fmt).completion.shape[-1] == without_data


def test_the_planned_batch_of_given_conversations_holds_them():
    c = calculator.config(**SFT)
    task, _ = load(c)
    assert abstract_batch(c, task.fmt, task.longest_chain).completion.shape[-1] == c.spoken_tokens


def longest_that_fits(folder) -> int:
    task, _ = load(config(folder, "ab", "cd", **SFT))
    return (
        POSITIONS - len(task.train[0].prompt_ids) - len(completion_ids(task.train[0], "", task.tokenizer, task.fmt)[0])
    )


def test_a_chain_over_the_model_s_positions_is_refused_or_left_out_and_named(tmp_path):
    """One chain fills the positions, one is a token longer. The warm start names rows by itself: RL may use them."""
    most = longest_that_fits(tmp_path)
    chains = "ab", "x" * most, "x" * (most + 1)
    words = rf"{POSITIONS} positions .* 1 of 3 rows: q2 \({POSITIONS + 1} tokens\).*data.skip_bad_rows=True"
    with pytest.raises(UserError, match=words):
        load(config(tmp_path, *chains, **SFT))
    task, _ = load(config(tmp_path, *chains, **SFT, data__skip_bad_rows=True))
    assert [row.example.id for row in task.train] == ["q0", "q1"] and task.longest_chain == most
    assert f"removed 1 unusable row (q2: {POSITIONS + 1} tokens with its chain" in task.data_line
    with pytest.raises(UserError, match="1 of 1 rows.*; shorten their chains$"):
        load(config(tmp_path, "x" * (most + 1), **SFT, data__skip_bad_rows=True))


def test_a_warm_start_leaves_long_chains_out_and_names_them(tmp_path, capsys):
    chains = "ab", "cd", "x" * (longest_that_fits(tmp_path) + 1)
    task, params = load(config(tmp_path, *chains, **WARM))
    assert len(task.train) == 3 and task.longest_chain is None
    with pytest.raises(UserError, match=rf"1 of 3 rows: q2 \({POSITIONS + 1} tokens\)"):
        chains_to_learn(task, None, params, Path())
    task, params = load(config(tmp_path, *chains, **WARM, data__skip_bad_rows=True))
    assert [row.example.id for row in chains_to_learn(task, None, params, Path())] == ["q0", "q1"]
    assert f"left out 1 row (q2: {POSITIONS + 1} tokens" in capsys.readouterr().out


def test_rows_without_a_chain_have_nothing_to_check(tmp_path):
    task, _ = load(config(tmp_path, "", "ab", **SFT))
    assert task.longest_chain == 2
    with pytest.raises(UserError, match="1 of 2 training rows have no chain .*q0"):
        make_source(task, make_devices(task.config), tmp_path, 0, None)
