"""The lines before a run say what the run does."""

from typing import get_args, get_type_hints

import jax
import pytest

from configs.calculator import get_config
from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.lora import MATRICES
from rl_likelihood.planning.programs import byte_format
from rl_likelihood.report import table_text
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.task import abstract_batch, largest_forward, load
from rl_likelihood.training.announcement import (
    ADVANTAGE,
    accuracy_words,
    announce,
    memory_copies,
    scored_line,
    steps_line,
)
from rl_likelihood.training.session import last_stage
from rl_likelihood.weights import files
from tests.runs import small_config
from tests.small import random_params


def test_a_conversation_s_sizes_stand_in_place_of_the_scored_answer():
    c = get_config("credit=turn")
    line = scored_line(build(c))
    for word in ("calculator", "json", "credit turn", "4 messages of 32 tokens", "replies of 48"):
        assert word in line
    assert "</" not in line and "chain" not in line
    c = get_config()
    c.env.name, c.reward.name, c.sampler.max_turns = "none", "log_prob", 1
    assert "reference answer" in scored_line(build(c))
    c.reward.truncated = "floor"
    assert "gets reward.floor for each answer token" in scored_line(build(c))


def test_the_length_of_a_run_is_in_steps_and_passes_over_the_data():
    c = get_config()
    c.train.steps, c.train.prompts_per_step = 200, 4
    for questions, words in ((400, "200, 2.0 times the 400 questions"), (3000, "200, 800 of 3,000 questions")):
        assert words in steps_line(build(c), questions)


ALONE = {"sampler__group_size": 2, "train__prompts_per_step": 4, "mesh__fsdp": 1, "mesh__tensor": 1, "mesh__data": 1}
SCALES = 2 * (64 + 128 + 32 + 32)  # of two layers: outputs of q, k and v, of gate and up, of o, of down


@pytest.mark.parametrize("sampled, scales", [("float32", 0), ("bfloat16", 0), ("int8", SCALES)])
def test_the_sampler_s_copy_is_as_large_as_it_is_stored(sampled, scales):
    int8 = sampled == "int8"
    c = small_config(
        model__compute_dtype="bfloat16" if int8 else sampled, sampler__weights="int8" if int8 else "compute"
    )
    task, params = load(build(c))
    matrices = sum(params["layers"][name].size for name in MATRICES)
    rest = sum(x.size for x in jax.tree.leaves(params)) - matrices
    size = {"float32": 4, "bfloat16": 2, "int8": 1}[sampled]
    copies = memory_copies(task, matrices + rest, loops=False)
    stored = copies["the sampler's copy"] * 4 * (matrices + rest)
    assert stored == pytest.approx(size * matrices + max(size, 2) * rest + 4 * scales, abs=0.1)
    assert (copies["parameters"], copies["gradient"]) == (1, 1)
    assert copies["the optimizer's state"] == pytest.approx(2, rel=1e-3)


def test_a_critic_and_a_judge_in_the_step_are_counted(tmp_path):
    """The critic has the policy's size and two moments of each number; its head has one number for each of the width.
    The judge is a model of the same size."""
    model = random_model("nano")
    files.save(tmp_path, model, random_params(model))
    save_tokenizer(byte_tokenizer(), tmp_path)
    judge = {"reward__name": "judge", "judge__model": str(tmp_path), "judge__where": "step"}
    for changes, name, size in (({"reward__name": "adversarial"}, "critic", 3), (judge, "judge", 1)):
        task, params = load(build(small_config(**changes)))
        count = sum(x.size for x in jax.tree.leaves(params))
        copies = memory_copies(task, count, loops=False)
        (counted,) = (value for key, value in copies.items() if name in key)
        assert counted == pytest.approx(size, rel=0.01), name
    assert not {key for key in memory_copies(load(build(small_config()))[0], count, False) if name in key}


@pytest.mark.parametrize("base_dtype, size, scales", [("float32", 4, 0), ("bfloat16", 2, 0), ("int8", 1, SCALES)])
def test_a_base_and_the_copy_of_its_layers_are_counted_in_the_base_s_type(base_dtype, size, scales):
    c = small_config(lora__rank=2, lora__base_dtype=base_dtype, model__layers="unroll", mesh__fsdp=1, mesh__tensor=8)
    task, params = load(build(c))
    matrices, layers, whole = (
        sum(x.size for x in jax.tree.leaves(tree))
        for tree in ({name: params["layers"][name] for name in MATRICES}, params["layers"], params)
    )
    copies = memory_copies(task, whole, loops=True)
    in_bytes = {name: value * 4 * whole for name, value in copies.items()}
    stored = size * matrices + 4 * scales
    assert in_bytes["a copy of the layers"] == pytest.approx(stored + max(size, 2) * (layers - matrices), abs=0.1)
    assert in_bytes["parameters"] == pytest.approx(stored + max(size, 2) * (whole - matrices), abs=0.1)
    assert in_bytes["adapters"] == in_bytes["gradient"] < in_bytes["parameters"] / 2


def test_the_announced_micro_batch_is_the_packed_step_s():
    def small(**changes):
        return build(small_config(sampler__group_size=2, train__prompts_per_step=6, **changes))

    c = small()
    others = abstract_batch(c, byte_format(c)).completion.shape[-1] - c.sampler.max_chain
    alone = make_mesh((1, 1, 1), jax.devices()[:1])
    # Of 6 prompts of 256 tokens: the most with fewer than 1,024; packed, the fewest with at least 512.
    for packing, prompts in ((False, 3), (True, 2)):
        c = small(sampler__max_chain=128 - others, train__packing=packing)
        assert largest_forward(c, byte_format(c), alone) == prompts


def test_a_reward_model_s_accuracies_stand_beside_length_alone(tmp_path):
    """Of the last evaluation; --best_of writes other lines into the same file."""
    accuracies = {"pair_accuracy": 0.654, "length_only_pair_accuracy": 0.57, "accuracy_when_shorter": 0.538}
    assert accuracy_words(tmp_path / "rm_eval.jsonl") == ""
    run_files.append(tmp_path / "rm_eval.jsonl", {"step": 200, "best_of": []})
    assert accuracy_words(tmp_path / "rm_eval.jsonl") == ""
    for line in ({"step": 0, "pair_accuracy": 0.5}, {"step": 200, **accuracies}, {"step": 200, "best_of": []}):
        run_files.append(tmp_path / "rm_eval.jsonl", line)
    line = accuracy_words(tmp_path / "rm_eval.jsonl")
    assert "pair_accuracy 65.4%, length_only_pair_accuracy 57.0%, accuracy_when_shorter 53.8%" in line


def test_with_packing_the_announced_micro_batch_is_the_least(capsys):
    for packing, words in ((False, "micro-batches of 2 prompts,"), (True, "micro-batches of at least 2 prompts,")):
        c = build(small_config(**ALONE, sampler__max_chain=128, train__packing=packing))
        devices = make_devices(c, jax.devices()[:1])
        announce(load(c, mesh=devices.learner)[0], devices, None, None)
        assert words in capsys.readouterr().out


def test_every_advantage_has_words():
    assert tuple(ADVANTAGE) == get_args(get_type_hints(LossConfig)["advantage"])


def test_one_step_is_no_steps():
    stages = [last_stage(step, "prob") for step in (1, 2, 5000)]
    assert stages == ["after 1 step of prob", "after 2 steps of prob", "after 5000 steps of prob"]
    line = table_text.evaluation_line(stages[0], {"questions": 1, "seconds": 2.0, "greedy_success": 1.0})
    assert line == "after 1 step of prob: greedy success 100.0%; 1 question in 2 s"
