"""`plan`: which shapes it reads, what it reports on cpu:8 and for a TPU, what it says if the run does not fit."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rl_likelihood import plan
from rl_likelihood.config import build, flatten
from rl_likelihood.errors import UserError
from rl_likelihood.planning import aot
from rl_likelihood.planning.text import table
from rl_likelihood.weights import hugging_face
from rl_likelihood.weights.published import published
from tests.runs import config_file, small_config


def small_plan(memory=None, search=False, topology="cpu:8", mean_tokens=0, **overrides):
    settings = build(small_config(**overrides))
    model = plan.model_shapes(settings)
    return plan.make_plan(settings, model, aot.target(topology), memory, search, mean_tokens)


@pytest.fixture(scope="module")
def planned():
    return small_plan()


def test_shapes_of_a_folder_need_only_its_config(tmp_path):
    model = published("qwen2.5-0.5b")
    (tmp_path / "config.json").write_text(json.dumps(hugging_face.config_to_hf(model, "bfloat16")))
    settings = build(small_config(model__preset="", model__path=str(tmp_path), model__remat="full"))
    assert plan.model_shapes(settings) == dataclasses.replace(model, remat="full")


def test_a_workdir_names_the_model_that_its_run_started_from(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(flatten(small_config())))
    settings = build(small_config(model__preset="", model__path=str(tmp_path)))
    assert plan.model_shapes(settings) == plan.model_shapes(build(small_config()))


def test_every_program_is_compiled_and_accounted_for(planned):
    assert [row["name"] for row in planned["programs"]] == ["learner step", "sampler weights", "sampling"]
    assert planned["mesh"] == {"data": 1, "fsdp": 2, "tensor": 4} and planned["devices"] == 8
    step, prepare, sampling = planned["programs"]
    held = planned["held"]
    # Two moments and some counters.
    assert 2 * held["parameters"] < held["optimizer"] < 2 * held["parameters"] + 1000
    assert step["arguments"] > held["parameters"] + held["optimizer"]  # and the batch
    assert step["peak"] > step["arguments"] and step["collectives"] and step["flops"] > 0
    assert step["others"] == 0 and 0 < prepare["peak"] < step["peak"]  # the sampler's weights are freed before a step
    assert held["optimizer"] < prepare["others"] < sum(held.values()) + sampling["arguments"]
    assert sampling["others"] == held["parameters"] + held["optimizer"]
    assert planned["fits"] is None and planned["floors"] is None


def test_packed_rows_of_given_lengths_need_fewer_operations():
    packing = {"train__packing": True, "sampler__max_chain": 200, "mesh__fsdp": 2, "mesh__tensor": 1, "mesh__data": 1}
    longest, shorter = (small_plan(topology="cpu:2", mean_tokens=mean, **packing) for mean in (0, 60))
    assert shorter["model_flops"] < 0.7 * longest["model_flops"]
    tokens = shorter["batch"]["packed_tokens"]
    assert tokens < longest["batch"]["packed_tokens"] and f"packed into {tokens} tokens" in table(shorter)
    with pytest.raises(UserError, match=r"mean_tokens is 60.*train\.packing"):
        small_plan(mean_tokens=60)


def test_a_reference_model_of_unrolled_layers_is_planned_as_a_run_holds_it():
    report = small_plan(model__layers="unroll", loss__kl="k3", loss__kl_coef=0.1)
    step, held = report["programs"][0], report["held"]
    assert held["reference"] == held["parameters"] > 0
    assert sum(held.values()) < step["arguments"] < 1.1 * sum(held.values())


def test_a_reference_model_adds_one_forward_to_the_flops(planned):
    more = small_plan(loss__kl="k3", loss__kl_coef=0.1)["model_flops"]
    # Forward and backward are three forwards, and the head is computed twice; the reference is one forward more.
    assert 1.2 < more / planned["model_flops"] < 1.4


def test_the_table_has_every_part(planned):
    text = table(planned)
    for words in ("learner step", "sampling", "GiB of checkpoints", "fsdp 2", "--memory_gib", "nothing ran", "flops"):
        assert words in text
    assert "learner step: all-" in text


def test_devices_with_rows_of_their_own_are_planned_as_the_engine_runs_them():
    """With slots, prefill and decoding are programs of one device, whose memory counts the caches once."""
    report = small_plan(mesh__fsdp=4, mesh__tensor=2, train__prompts_per_step=4, sampler__slots=4)
    names = [row["name"] for row in report["programs"]]
    assert names == ["learner step", "sampler weights", "prefill", "sampling"] and report["sampler_streams"]
    prefill, sampling = report["programs"][2:]
    caches = sum(report["cache"].values())
    assert prefill["others"] == sampling["others"] + caches
    assert sampling["arguments"] > caches and not sampling["collectives"] and not prefill["collectives"]
    assert sampling["temporaries"] < caches + 2**20
    assert "each device with rows of its own" in table(report)


@pytest.mark.parametrize(
    "topology, group, mesh",
    [("v5e:2x2", 2, {"data": 1, "fsdp": 4, "tensor": 1}), ("v5e:8x8", 32, {"data": 4, "fsdp": 16, "tensor": 1})],
    ids=["one host", "a host is a part of the slice"],
)
def test_the_real_programs_compile_for_a_described_tpu(topology, group, mesh):
    """With the splash kernel, bf16 and remat: two layers of SmolLM2.

    On the large slice each host samples half of a prompt's chains, on four devices. The compiler of that slice refuses
    programs of four devices, so each device has a program of its own.
    """
    pytest.importorskip("libtpu")
    overrides = {
        "mesh__data": 0,
        "mesh__fsdp": 0,
        "mesh__tensor": 1,
        "train__prompts_per_step": 4,
        "sampler__group_size": group,
        "model__preset": "",
        "model__path": "smollm2-135m",
        "model__remat": "full",
    }
    settings, where = build(small_config(**overrides)), aot.target(topology)
    model = dataclasses.replace(plan.model_shapes(settings, "tpu"), layers=2)
    assert model.attention == "splash" and model.compute_dtype == "bfloat16"
    report = plan.make_plan(settings, model, where, where.chip.memory, search=False)
    assert report["fits"] is True and {row["refused"] for row in report["programs"]} == {""} and report["mesh"] == mesh
    assert report["sampler_streams"] == (len(where.devices) > 4)
    assert all(row["cycles"] > 0 for row in report["programs"]) and report["programs"][0]["kernel_flops"] > 0
    assert report["estimates"]["step_over_floor"] > 1 and report["estimates"]["sampling_over_floor"] > 1
    assert "of its floor" in table(report)
    assert report["floors"]["step_traffic"] > 0 and "fsdp" in report["programs"][0]["collectives"][0]["axes"]


def test_memory_is_judged_to_the_byte(planned):
    total = max(row["total"] for row in planned["programs"])
    fits = small_plan(memory=total)
    assert fits["fits"] is True and fits["short"] == 0 and "advice" not in fits
    assert "fits, 0.00 GiB to spare" in table(fits)
    short = small_plan(memory=total - 1)
    assert short["fits"] is False and short["short"] == 1
    assert f"does not fit, 0.00 GiB short; {short['advice']}" in table(short)


def test_a_sampler_that_does_not_fit_names_its_own_settings():
    short = small_plan(memory=1000)
    assert short["fits"] is False and "sampler.group_size" in short["advice"]


def test_prompts_that_the_mesh_does_not_divide_are_refused():
    with pytest.raises(UserError, match=r"train.prompts_per_step is 2, .*mesh.data x mesh.fsdp = 8"):
        small_plan(mesh__fsdp=8, mesh__tensor=1)


def test_the_command_prints_one_object_and_refuses_in_one_line(tmp_path):
    command = [sys.executable, "-m", "rl_likelihood.plan", f"--config={config_file(tmp_path)}"]

    def run(*more):
        root = Path(plan.__file__).parent.parent
        return subprocess.run([*command, *more], capture_output=True, text=True, cwd=root)

    done = run("--topology=cpu:8", "--json", "--memory_gib=4")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["topology"] == "cpu:8" and out["fits"] is True and out["memory"] == 4 * 2**30
    done = run("--topology=v5e:4x5")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "--topology is 'v5e:4x5'" in done.stderr and "v5e:4x4" in done.stderr
