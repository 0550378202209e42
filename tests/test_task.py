"""What a run starts from: its questions in ids, and those that are left out."""

import json

import pytest

from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.planning import aot
from rl_likelihood.run_model import run_on
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.task import load
from tests.runs import small_config
from tests.small import tiny


def test_a_long_training_row_is_refused_or_left_out_and_named_and_a_held_out_one_is_refused(tmp_path):
    rows = [{"prompt": f"{i}+1", "answer": str(i + 1), "id": i} for i in range(8)]
    long = {"prompt": "9" * 99, "answer": "7", "id": "long"}
    paths = {}
    for name, content in (("train", [*rows[:5], long]), ("test", rows[5:]), ("long_test", [*rows[5:], long])):
        paths[name] = str(tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))

    def loaded(train, test, skip):
        c = small_config(data__source="jsonl", data__tasks=(), data__train_size=0, data__heldout_size=0)
        c.data.update(train_path=paths[train], heldout_path=paths[test], skip_bad_rows=skip)
        c.eval.prompts = 3
        return load(build(c))[0]

    with pytest.raises(UserError, match="1 of 6 .*long .*data.skip_bad_rows=True"):
        loaded("train", "test", False)
    task = loaded("train", "test", True)
    assert [row.example.id for row in task.train] == ["0", "1", "2", "3", "4"] and len(task.heldout) == 3
    assert task.data_line.startswith("train.jsonl: 5 training and 3 held-out questions; ")
    assert "removed 1 unusable row (long: " in task.data_line
    assert task.data_line.endswith(" tokens over prompt.max_prompt = 40)")
    with pytest.raises(UserError, match="the prompt of 1 of 4 rows: long "):
        loaded("train", "long_test", True)


def open_mesh(**overrides):
    open_axes = {"mesh__data": 0, "mesh__fsdp": 0, "mesh__tensor": 1, "reward__name": "log_prob"}
    return build(small_config(**open_axes | overrides))


@pytest.mark.parametrize(
    "prompts, group, mesh",
    [(8, 3, (1, 8, 1)), (6, 8, (1, 8, 1)), (6, 4, (2, 4, 1)), (4, 2, (4, 2, 1)), (12, 2, (4, 2, 1))],
)
def test_a_mesh_left_open_is_the_most_fsdp_that_the_batch_divides_by(prompts, group, mesh):
    devices = make_devices(open_mesh(train__prompts_per_step=prompts, sampler__group_size=group))
    assert devices.learner.devices.shape == mesh
    assert len(devices.prompts) == prompts and devices.chains == slice(0, group)


def test_a_batch_that_no_mesh_divides_is_refused_with_settings_that_do():
    of_six = {"train__prompts_per_step": 6, "sampler__group_size": 4}
    with pytest.raises(UserError, match="micro_batch_prompts is 1.*8 devices.* mesh.tensor=1 .*prompts=6"):
        make_devices(open_mesh(**of_six, train__micro_batch_prompts=1))
    assert make_devices(open_mesh(**of_six, train__micro_batch_prompts=6)).learner.devices.shape == (2, 4, 1)
    of_three = {"train__prompts_per_step": 3, "sampler__group_size": 2}
    with pytest.raises(UserError, match="set mesh.tensor=4 and train.micro_batch_prompts=3, which do"):
        make_devices(open_mesh(**of_three))
    make_devices(open_mesh(**of_three, mesh__tensor=4))


class Device:
    """As much of a device of another process as a mesh needs."""

    platform = "cpu"

    def __init__(self, number, process):
        self.id, self.process_index = number, process


# The order of a torus: of a mesh over all of them, two processes have one run of devices and two have not.
TORUS = [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]


@pytest.mark.parametrize(
    "owners, mesh",
    [([0, 0, 1, 1, 2, 2, 3, 3], (1, 8, 1)), (TORUS, None), ([0, 0, 1, 1, 1, 1, 0, 0], (1, 8, 1)), ([0, 0, 0, 1], None)],
)
def test_all_processes_choose_one_mesh_with_equal_parts_or_refuse_it_alike(owners, mesh):
    devices = [Device(i, p) for i, p in enumerate(owners)]
    c = open_mesh(train__prompts_per_step=8, sampler__group_size=16, train__micro_batch_prompts=4)
    chosen = set()
    for process in sorted(set(owners)):
        try:
            made = make_devices(c, devices, process)
            shape = tuple(made.learner.shape.values())
            chosen.add((shape, len(made.prompts), made.chains.stop - made.chains.start))
        except UserError as error:
            chosen.add(str(error))
    assert len(chosen) == 1, chosen
    assert mesh is None or next(iter(chosen))[0] == mesh


@pytest.mark.parametrize(
    "topology, slices, of_sampler",
    [
        ("v5e:4x4", 1, "shared"),
        ("v5e:4x4", 2, "shared"),
        ("v6e:4x4", 1, "shared"),
        ("v5p:2x2x4", 1, "shared"),
        ("v5e:4x4", 1, "3"),
        ("v5e:4x4", 2, "3"),
        ("v5p:2x2x2", 2, "3"),
    ],
)
def test_so_do_those_of_a_slice(topology, slices, of_sampler):
    pytest.importorskip("libtpu")
    devices = aot.target(topology, slices).devices
    batch = {"train__prompts_per_step": 8, "sampler__group_size": 32, "train__micro_batch_prompts": 4}
    c = open_mesh(**batch, sampler__devices=of_sampler)
    made = [make_devices(c, devices, p) for p in sorted({d.process_index for d in devices})]
    chosen = {(*p.learner.shape.values(), len(p.prompts), p.chains.stop - p.chains.start) for p in made}
    assert len(chosen) == 1, chosen


def test_the_settings_of_evaluation_reach_its_sampler_and_no_other():
    cut = {"top_p": 0.95, "top_k": 20, "min_p": 0.1}
    task, _ = load(build(small_config(eval__temperature=0.6, **{f"eval__{k}": v for k, v in cut.items()})))
    sampler, training = task.eval_sampler(2), task.sampler()
    assert sampler.temperature == (0.0, 0.6, 0.6) and {name: getattr(sampler, name) for name in cut} == cut
    assert (training.temperature, training.top_p, training.top_k, training.min_p) == (1.0, 1.0, 0, 0.0)


def test_layers_are_unrolled_on_a_cpu_and_scanned_elsewhere_unless_the_config_says():
    c = build(small_config(model__layers="auto"))
    assert [run_on(tiny(), c, platform).scan_layers for platform in ("cpu", "tpu", "gpu")] == [False, True, True]
    for said in ("scan", "unroll"):
        c = build(small_config(model__layers=said))
        assert [run_on(tiny(), c, platform).scan_layers for platform in ("cpu", "tpu")] == [said == "scan"] * 2


def test_a_process_without_devices_is_refused():
    with pytest.raises(UserError, match="process 2 .*2 devices in 2 processes"):
        make_devices(open_mesh(), [Device(0, 0), Device(1, 1)], 2)
