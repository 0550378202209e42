"""What a run starts from: its questions in ids, and those that are left out."""

import json

import pytest

from rl_likelihood import config as configs
from rl_likelihood.run.world import load, make_places
from rl_likelihood.shapes import UserError
from tests.runs import small_config


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
        return load(configs.build(c))[0]

    with pytest.raises(UserError, match="the prompt of 1 of 6 rows: long .*data.skip_bad_rows=True leaves such"):
        loaded("train", "test", False)
    world = loaded("train", "test", True)
    assert [row.example.id for row in world.train] == ["0", "1", "2", "3", "4"] and len(world.heldout) == 3
    assert world.data_line.startswith("train.jsonl: 5 training and 3 held-out questions; ")
    assert "0 bad rows, 1 too long training row (long: " in world.data_line
    assert world.data_line.endswith(" tokens over prompt.max_prompt = 32)")
    with pytest.raises(UserError, match="the prompt of 1 of 4 rows: long "):
        loaded("train", "long_test", True)


def open_mesh(**overrides):
    return small_config(mesh__data=0, mesh__fsdp=0, mesh__tensor=1, reward__name="log_prob", **overrides)


@pytest.mark.parametrize(
    "prompts, group, mesh",
    [(8, 3, (1, 8, 1)), (6, 8, (1, 8, 1)), (6, 4, (2, 4, 1)), (4, 2, (4, 2, 1)), (12, 2, (4, 2, 1))],
)
def test_a_mesh_left_open_is_the_most_fsdp_that_the_batch_divides_by(prompts, group, mesh):
    places = make_places(open_mesh(train__prompts_per_step=prompts, sampler__group_size=group))
    assert places.learner.devices.shape == mesh
    assert len(places.own) == prompts and places.chains == slice(0, group)


def test_a_batch_that_no_mesh_divides_is_refused_with_settings_that_do():
    c = open_mesh(train__prompts_per_step=6, train__micro_batch_prompts=1, sampler__group_size=4)
    with pytest.raises(UserError, match="micro_batch_prompts is 1.*8 devices; set mesh.tensor=1 .*prompts=6, which do"):
        make_places(c)
    c.train.micro_batch_prompts = 6
    assert make_places(c).learner.devices.shape == (2, 4, 1)
    c = open_mesh(train__prompts_per_step=3, sampler__group_size=2)
    with pytest.raises(UserError, match="set mesh.tensor=4 and train.micro_batch_prompts=3, which do"):
        make_places(c)
    c.mesh.tensor = 4
    make_places(c)
