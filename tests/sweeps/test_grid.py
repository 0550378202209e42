"""Points, names, selections and the state of run folders: what a sweep knows without running anything."""

import json
import os

import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.lock import lock
from rl_likelihood.sweeps import grid
from rl_likelihood.sweeps.grid import chain, named, of_what_varies, point, product, sweep, zipped

BASE = {"config": "configs/base.py"}


def test_the_algebra_of_points():
    seeds, rates = sweep("seed", (0, 1)), sweep("optim.lr", (1e-5, 1e-4))
    assert product(seeds, rates) == [
        {"seed": 0, "optim.lr": 1e-5},
        {"seed": 0, "optim.lr": 1e-4},
        {"seed": 1, "optim.lr": 1e-5},
        {"seed": 1, "optim.lr": 1e-4},
    ]
    assert zipped(seeds, rates) == [{"seed": 0, "optim.lr": 1e-5}, {"seed": 1, "optim.lr": 1e-4}]
    assert chain(seeds, rates) == seeds + rates
    assert named("data", {"math": {"data.train_path": "m"}}) == [{"@data": "math", "data.train_path": "m"}]
    assert product(seeds, []) == []


def test_parts_that_disagree_are_refused():
    with pytest.raises(UserError, match="seed is 0 and 1 in one point"):
        product(sweep("seed", (0,)), sweep("seed", (1,)))
    assert product(sweep("seed", (0,)), sweep("seed", (0,))) == [{"seed": 0}]
    with pytest.raises(UserError, match="parts of 2, 3 points"):
        zipped(sweep("a.b", (1, 2)), sweep("seed", (0, 1, 2)))


def test_a_name_says_labels_and_seed_and_depends_on_its_point_alone():
    one = point(BASE | {"@reward": "log_prob, kl", "seed": 3, "optim.lr": 1e-5})
    same = point({"optim.lr": 1e-5, "seed": 3, "@reward": "log_prob, kl", **BASE})
    assert one.name == same.name and one.name.startswith("reward=log_prob_kl,seed=3-")
    assert one.name != point(BASE | {"@reward": "log_prob, kl", "seed": 3, "optim.lr": 2e-5}).name
    other = point({"config": "configs/base.py:a=1", "@reward": "log_prob, kl", "seed": 3, "optim.lr": 1e-5})
    assert one.name != other.name
    assert point(BASE | {"data.tasks": ("a", "b")}).name == point(BASE | {"data.tasks": ["a", "b"]}).name


def test_without_labels_every_override_is_one():
    p = point(BASE | {"reward.name": "0.9*rlpr + 0.1*format", "optim.lr": 1e-5})
    assert p.labels == {"reward.name": "0.9*rlpr + 0.1*format", "optim.lr": "1e-05"}
    assert "/" not in p.name and " " not in p.name and "*" not in p.name


def test_names_hold_only_what_varies_and_the_seed():
    same = {"train.steps": 2, "data.tasks": ("a",), "seed": 0}
    points = of_what_varies([point(BASE | same | {"reward.name": name}) for name in ("prob", "log_prob")])
    assert [p.labels for p in points] == [{"reward.name": name, "seed": "0"} for name in ("prob", "log_prob")]
    assert points[0].overrides == same | {"reward.name": "prob"}
    labelled = of_what_varies([point(BASE | {"@reward": "x", "seed": i}) for i in (0, 1)])
    assert [p.labels for p in labelled] == [{"reward": "x", "seed": str(i)} for i in (0, 1)]


def labels(*parts):
    return [p.labels for p in of_what_varies([point(p) for p in product(*parts)])]


def test_points_of_equal_labels_are_told_apart_by_what_differs():
    x, data = named("reward", {"x": {"reward.name": "prob"}}), named("data", {"m": {"data.train_path": "m"}})
    seeds, same = sweep("seed", (0, 1)), {"train.steps": 3, **BASE}
    rates = labels([same], x, sweep("optim.lr", (1e-5, 1e-4)), seeds)
    assert rates == [{"reward": "x", "optim.lr": lr, "seed": s} for lr in ("1e-05", "0.0001") for s in "01"]
    rewards = labels([same], data, sweep("reward.name", ("prob", "log_prob")), seeds)
    assert rewards == [{"data": "m", "reward.name": n, "seed": s} for n in ("prob", "log_prob") for s in "01"]
    assert labels(sweep("config", ("a.py", "b.py"))) == [{"config": "a.py"}, {"config": "b.py"}]
    tied = labels([same], data, [{"seed": 0, "data.seed": 5}, {"seed": 1, "data.seed": 6}])
    assert tied == [{"data": "m", "seed": s} for s in "01"], "the seed tells them apart"
    default = labels([same], x, [{}, {"optim.lr": 1e-4}])
    assert default == [{"reward": "x", "optim.lr": lr} for lr in ("default", "0.0001")]


def test_a_seed_of_one_value_alone_says_that_value():
    """Else it would stand in the lines of all values."""
    rate = lambda lr, seed: point(BASE | {"@reward": "x", "optim.lr": lr, "seed": seed})
    points = of_what_varies([rate(1e-5, 0), rate(1e-4, 0), rate(1e-5, 1)])
    assert [p.labels["optim.lr"] for p in points] == ["1e-05", "0.0001", "1e-05"]


def test_a_name_is_a_file_name_however_long_its_labels():
    p = point(BASE | {f"@label{i}": "x" * 300 for i in range(9)})
    assert len(p.name) < 255


def test_arguments_are_those_of_the_command_line():
    p = point(BASE | {"@reward": "x", "data.tasks": ("one_operation",), "model.layers": "unroll", "optim.lr": 1e-5})
    assert p.arguments() == [
        "--config=configs/base.py",
        "--config.data.tasks=('one_operation',)",
        "--config.model.layers=unroll",
        "--config.optim.lr=1e-05",
    ]


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"seed": 1}, '"config": a config file'),
        ("configs/base.py", "is no point"),
        (BASE | {"optim.lr": None}, "optim.lr is None"),
        (BASE | {"reward": {"name": "prob"}}, "reward is"),
    ],
)
def test_what_is_no_point_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        point(overrides)


def test_only():
    parts = named("data", {"math": {}, "proofs": {}}), sweep("optim.lr", (1e-5, 1.0))
    points = [point(BASE | p) for p in product(*parts)]
    assert [p.labels["data"] for p in grid.only(points, ["data=math"])] == ["math", "math"]
    assert len(grid.only(points, ["data=math", "optim.lr=1e-5"])) == 1
    assert len(grid.only(points, ["optim.lr=1"])) == 2, "1 is 1.0"
    assert len(grid.only(points, ["config=configs/base.py"])) == 4
    mixed = [*points, point(BASE | {"@method": "sft"})]
    assert grid.only(mixed, ["data!=math"]) == mixed[2:], "the last one has no data at all"
    assert [p.labels["data"] for p in grid.only(points, ["data!=math", "optim.lr=1e-5"])] == ["proofs"]
    with pytest.raises(UserError, match="no point has it; data is one of math, proofs"):
        grid.only(points, ["data!=mth"])
    with pytest.raises(UserError, match="every point has it"):
        grid.only(points[:2], ["data!=math"])
    with pytest.raises(UserError, match="did you mean data=VALUE"):
        grid.only(points, ["dat=math"])
    with pytest.raises(UserError, match="data is one of math, proofs"):
        grid.only(points, ["data=mth"])
    with pytest.raises(UserError, match="write KEY=VALUE"):
        grid.only(points, ["data"])


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_an_experiments_file_is_loaded(tmp_path):
    path = write(
        tmp_path / "experiments" / "small.py",
        '"""Two points.\n\nMore."""\nfrom rl_likelihood.sweeps.grid import sweep, product\nROWS = "seed"\n'
        'RESOURCES = {"TPU": 4}\n\ndef get_sweep():\n'
        '    return product([{"config": "configs/base.py"}], sweep("seed", (0, 1)))\n',
    )
    e = grid.load(path)
    assert (e.name, e.doc, e.rows, e.resources) == ("small", "Two points.", "seed", {"TPU": 4})
    assert [p.overrides for p in e.points] == [{"seed": 0}, {"seed": 1}] and e.prepare is None


@pytest.mark.parametrize(
    "body, words",
    [
        ("x = 1\n", "has no function get_sweep"),
        ("get_sweep = []\n", "has no function get_sweep"),
        ("def get_sweep():\n    pass\n", r"get_sweep\(\) gives None; it must return the list"),
        ("import os\nimport nothing_like_it\n", "bad.py:2: ModuleNotFoundError: .*nothing_like_it"),
        ("def get_sweep()\n    return []\n", "bad.py:1: SyntaxError: "),
        ("import json\n\ndef get_sweep():\n    return json.loads('{')\n", "bad.py:4: JSONDecodeError: "),
        (
            "from rl_likelihood.sweeps.grid import named\nget_sweep = lambda: named('a', 3)\n",
            "bad.py:2: AttributeError",
        ),
        ("def get_sweep(x):\n    return []\n", r"bad.py: TypeError: get_sweep\(\) .*'x'"),
        ("def get_sweep():\n    return [{'seed': 0}]\n", "bad.py: .*'seed': 0.* is no point"),
        ("exit('no data')\n", "bad.py:1: SystemExit: no data"),
        ("def get_sweep():\n    return []\n", "gives no point"),
        ('def get_sweep():\n    return [{"config": "c.py", "seed": 0}] * 2\n', "points 0 and 1 are the same"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, body, words):
    with pytest.raises(UserError, match=words):
        grid.load(write(tmp_path / "experiments" / "bad.py", body))


def test_a_missing_file_is_refused_with_the_nearest(tmp_path):
    write(tmp_path / "experiments" / "cpu_grid.py", "")
    with pytest.raises(UserError, match="did you mean cpu_grid.py"):
        grid.load(str(tmp_path / "experiments" / "cpu_gird.py"))
    with pytest.raises(UserError, match="no Python file"):
        grid.load("README.md")


# ------------------------------------------------------------------------------------------- histories


def events(*names):
    """start and an outcome for each word; "failed:x" has the error x."""
    out = []
    for name in names:
        event, _, error = name.partition(":")
        out += [{"event": "start"}] * (event not in ("start", "retry")) + [{"event": event, "error": error}]
    return out


@pytest.mark.parametrize(
    "rows, failures, preemptions, stopped",
    [
        ([], 0, 0, ""),
        (["failed:a", "failed:b", "failed:a"], 3, 0, ""),
        (["failed:a", "failed:b", "failed:a", "failed:b"], 4, 0, "failed 4 times: b"),
        (["failed:a", "failed:a"], 2, 0, "the same error twice in a row: a"),
        (["failed:a", "preempted", "failed:a"], 2, 1, "the same error twice in a row: a"),
        (["preempted"] * 50, 0, 50, ""),
        (["preempted"] * 9 + ["failed:a"], 1, 9, ""),
        (["start", "start", "failed:a"], 1, 2, ""),  # twice the machine went away
        (["start"], 0, 1, ""),
        (["failed:a", "failed:a", "retry"], 0, 0, ""),
        (["failed:a", "failed:a", "retry", "failed:a"], 1, 0, ""),
        (["elsewhere", "elsewhere", "failed:a"], 1, 0, ""),
    ],
)
def test_failures_and_preemptions_are_counted_separately(rows, failures, preemptions, stopped):
    errors, preempted, why = grid.history(events(*rows))
    assert (len(errors), preempted, why) == (failures, preemptions, stopped)


def test_the_state_of_a_folder(tmp_path):
    run = tmp_path / "run"
    assert grid.state(run).kind == "new" and not run.exists(), "looking leaves nothing behind"
    run.mkdir()
    grid.note(run, "start")
    assert grid.state(run).kind == "preempted" and grid.state(run).preemptions == 1
    run_files.append(run / run_files.METRICS, {"step": 7, "reward/mean": 1.0})
    grid.note(run, "failed", error="no space")
    state = grid.state(run)
    assert (state.kind, state.step, state.failures, state.preemptions, state.error) == ("failed", 7, 1, 0, "no space")
    grid.note(run, "start")
    grid.note(run, "failed", error="no space")
    assert grid.state(run).kind == "stopped" and "no space" in grid.state(run).why
    run_files.write_status(run, "done", 9, 9)
    assert (grid.state(run).kind, grid.state(run).step, grid.state(run).steps) == ("done", 9, 9)


def test_a_run_made_by_hand_has_a_state_too(tmp_path):
    run_files.write_status(tmp_path, "interrupted", 3, 9)
    assert grid.state(tmp_path).kind == "preempted"
    run_files.write_status(tmp_path, "failed", 3, 9, "a sentence")
    assert (grid.state(tmp_path).kind, grid.state(tmp_path).error) == ("failed", "a sentence")


def test_a_folder_is_held_by_one(tmp_path):
    run = tmp_path / "run"
    assert not grid.held(run)
    mine = grid.hold(run)
    assert mine is not None and grid.held(run) and grid.hold(run) is None
    grid.note(run, "start")
    assert grid.state(run).kind == "running" and grid.state(run).preemptions == 0
    mine.close()
    assert not grid.held(run) and grid.state(run).kind == "preempted"


def test_a_run_s_own_lock_holds_its_folder_too(tmp_path):
    """A run that was begun by hand, or by a sweep of another host."""
    with lock(tmp_path):
        assert grid.held(tmp_path) == f"process {os.getpid()} on this host" and grid.hold(tmp_path) is None
        assert grid.state(tmp_path).kind == "running"


def test_the_sweep_s_lock_leaves_the_run_s_alone(tmp_path):
    said = []
    mine = grid.hold(tmp_path)
    with lock(tmp_path, say=said.append):
        assert grid.held(tmp_path)
    assert not said, "no stale lock was found, and none was waited for"
    assert grid.held(tmp_path), "the run has ended, its attempt not yet"
    mine.close()
    assert not grid.held(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        grid.hold(tmp_path / "file" / "run")


def test_the_last_step_is_read_from_the_end(tmp_path):
    assert grid.last_step(tmp_path) == 0
    path = tmp_path / run_files.METRICS
    path.write_text("".join(json.dumps({"step": i, "x": "y" * 500}) + "\n" for i in range(1, 400)))
    assert grid.last_step(tmp_path) == 399
    with path.open("a") as f:
        f.write('{"step": 400, "ha')
    assert grid.last_step(tmp_path) == 399, "half a line is no step"
