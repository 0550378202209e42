"""The sweep's command: every experiment's points are valid configs; whole sweeps of a very small model."""

import json
import operator
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rl_likelihood import sweep
from rl_likelihood.config import flatten
from rl_likelihood.report import table
from rl_likelihood.runtime import run_files
from rl_likelihood.sweeps import grid
from tests.runs import config_file, experiment

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(p for p in (ROOT / "experiments").glob("*.py") if "def get_sweep" in p.read_text())


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = sweep.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_folder_of_the_runs_may_be_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = sweep.parser().parse_args(["e.py", "--report", "--root=~/runs", "--out=~/out"])
    assert (asked.root, asked.out) == (f"{tmp_path}/runs", f"{tmp_path}/out")


# ------------------------------------------------------------------------------------------- the experiments


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_point_of_every_experiment_is_a_config_that_validates(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    e = grid.load(str(path))
    for p in e.points:
        c = sweep.resolve(p)
        for name, value in p.overrides.items():
            assert name == "preset" or operator.attrgetter(name)(c) == value, (p.name, name)
    assert len({p.name for p in e.points}) == len(e.points)
    assert e.doc


def counts(path: str) -> dict[str, int]:
    e = grid.load(str(ROOT / "experiments" / path))
    out: dict[str, int] = {}
    for p in e.points:
        out[p.labels.get("reward", "")] = out.get(p.labels.get("reward", ""), 0) + 1
    return out


def test_the_cpu_grid_is_eight_rewards_on_two_tasks_with_two_seeds(monkeypatch):
    monkeypatch.chdir(ROOT)
    rewards = ("base_rl", "log_prob", "avg_log_prob", "prob", "avg_prob", "jepo", "self_certainty", "sft")
    assert counts("cpu_grid.py") == dict.fromkeys(rewards, 4)
    points = grid.load("experiments/cpu_grid.py").points
    configs = {(p.labels["task"], p.labels["reward"]): sweep.resolve(p) for p in points}
    assert {c.sampler.group_size for (task, _), c in configs.items() if task == "short"} == {8}
    assert {c.reward.truncated for (task, _), c in configs.items() if task == "long"} == {"force_close"}
    assert configs["short", "prob"].loss.kl == "k3" and configs["long", "prob"].loss.kl == "none"
    assert configs["short", "log_prob"].loss.answer_term == 1.0 and configs["short", "sft"].reward.name == "sft"


def test_long_answers_differ_in_the_reward_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    points = grid.load("experiments/long_answers.py").points
    assert len(points) == 3 * (9 + 3 + 3)
    configs = {(p.labels["task"], p.labels["reward"]): sweep.resolve(p) for p in points}
    long = {reward: c for (task, reward), c in configs.items() if task == "long"}
    assert {(c.sampler.max_chain, c.eval.trace, c.lora.rank) for c in long.values()} == {(160, True, 16)}
    assert [r for r, c in long.items() if c.train.eval_first] == ["avg_log_prob"], "the others begin at the same model"
    assert {c.loss.kl for c in long.values()} == {"none"}
    names = {r: (c.reward.name, c.reward.token_weights, c.reward.baseline) for r, c in long.items()}
    assert names["nrt_neg_log"] == ("nrt", "neg_log", "frozen") and names["nrt_inverse"] == ("nrt", "inverse", "frozen")
    exact = ("log_prob", "avg_log_prob", "avg_prob", "nrt_neg_log", "nrt_inverse", "r3")
    losses = {(long[r].loss.answer_term, long[r].loss.advantage, long[r].loss.aggregation) for r in exact}
    assert losses == {(1.0, "loo", "seq_sum")}
    for task, grader in (("short", "exact_match"), ("countdown3", "countdown")):
        graded = [configs[task, reward].reward.name for reward in ("max_rl", "grpo")]
        assert graded == [f"max_rl({grader})", grader]


def test_the_verifiable_grid_is_that_of_the_paper(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = 2 * 2 * 2  # models, data sets, seeds
    both = {name: 2 * blocks for name in ("base_rl", "log_prob", "avg_log_prob", "prob", "avg_prob")}
    assert counts("paper_verifiable.py") == both | {"jepo": blocks, "sft": blocks}
    e = grid.load("experiments/paper_verifiable.py")
    cell = {tuple(sorted(row["labels"].items())): row for row in e.paper}
    labels = {"model": "llama", "data": "math", "group": "32", "reward": "log_prob"}
    assert cell[tuple(sorted(labels.items()))]["greedy_success"] == (43.30, 0.10)
    assert cell[tuple(sorted(labels.items()))]["log_prob_mc32"] == (-0.68, 0.0)
    labels = {"model": "qwen", "data": "deepscaler", "group": "4", "reward": "jepo"}
    assert cell[tuple(sorted(labels.items()))]["perplexity"] == (2.62, 0.01)
    # sft's cells are of answers after the empty chain, and every cell has a column of the table.
    labels = {"model": "llama", "data": "math", "group": "32", "reward": "sft"}
    sft = next(row for row in e.paper if row["labels"] == labels)
    assert {k: v for k, v in sft.items() if k != "labels"} == {
        "greedy_success_no_chain": 14.43,
        "sampled_success_no_chain": 10.0,
        "log_prob_no_chain": -0.97,
        "perplexity_no_chain": 2.63,
        "chain_length_no_chain": 5.0,
    }
    columns = {column.name for column in table.GRID_COLUMNS}
    written = grid.load("experiments/paper_nonverifiable.py").paper
    for row in (*e.paper, *written):
        assert set(row) - {"labels"} <= columns
        assert all(name.endswith("_no_chain") == (row["labels"]["reward"] == "sft") for name in set(row) - {"labels"})


# ------------------------------------------------------------------------------------------- without running


def test_list_shows_every_point_and_checks_it(tmp_path, capsys):
    code, out, _ = call(capsys, experiment(tmp_path), "--list", f"--root={tmp_path / 'runs'}")
    assert code == 0 and "Two rewards." in out and "   1  reward=sft,seed=0-" in out and "2 points" in out
    assert not (tmp_path / "runs").exists()


def test_printed_commands_are_the_training_commands(tmp_path, capsys):
    path = experiment(tmp_path)
    code, out, _ = call(capsys, path, "--run=0", "--runner=print", f"--root={tmp_path / 'runs'}")
    assert code == 0 and out.count("\n") == 1
    assert out.startswith("python -m rl_likelihood.train --config=") and "--config.preset=kw_log_prob" in out
    assert f"--workdir={tmp_path / 'runs'}/reward=log_prob,seed=0-" in out
    code, out, _ = call(capsys, str(ROOT / "experiments/cpu_grid.py"), "--list", "--only", "task=long")
    assert "32 points" not in out and "16 points" in out


def test_a_point_that_is_not_there_is_refused_before_files_are_made(tmp_path, capsys):
    path = experiment(tmp_path)
    with open(path, "a") as file:
        file.write(f"\n\ndef prepare():\n    open({str(tmp_path / 'made')!r}, 'w').close()\n    1 / 0\n")
    code, _, err = call(capsys, path, "--run=999", f"--root={tmp_path / 'runs'}")
    assert code == 2 and "there is no point 999" in err and not (tmp_path / "made").exists()
    code, _, err = call(capsys, path, "--prepare")
    assert code == 2 and (tmp_path / "made").exists() and err.count("\n") == 1
    assert f"{path}:13: ZeroDivisionError" in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--run=7", "--runner=print"], "there is no point 7"),
        (["--run=x", "--runner=print"], "'x' is no number"),
        (["--run=²", "--runner=print"], "'²' is no number"),
        (["--list", "--only", "rewrd=sft"], "did you mean reward=VALUE"),
        (["--list", "--run"], "not allowed with"),
        ([], "is required"),
        (["--run", "--jobs=0"], "--jobs is 0"),
        (["--report", "--out=gs://bucket"], "--out is gs://bucket, which is no folder"),
        (["--report", f"--out={__file__}"], "table.md: cannot be written"),
        (["--run", "--runner=ray", "--resources=TPU"], "write NAME=NUMBER"),
    ],
)
def test_refusals_are_one_line(tmp_path, capsys, arguments, words):
    code, out, err = call(capsys, experiment(tmp_path), *arguments, f"--root={tmp_path / 'runs'}")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and words in err


@pytest.mark.parametrize(
    "line, words",
    [
        ('"reward.nam": "prob"', "reward.nam"),
        ('"optim.lr": "fast"', "optim.lr"),
        ('"reward.name": "porb"', "did you mean 'prob'"),
        ('"preset": "novr"', "did you mean 'nover'"),
        ('"sampler.group_size": 1', "it must be at least 2"),
    ],
)
def test_a_point_that_its_run_would_refuse_is_refused_by_list(tmp_path, capsys, line, words):
    path = tmp_path / "experiments" / "bad.py"
    path.parent.mkdir()
    path.write_text(f'def get_sweep():\n    return [{{"config": {str(config_file(tmp_path))!r}, {line}}}]\n')
    code, _, err = call(capsys, str(path), "--list")
    assert code == 2 and err.count("\n") == 1 and words in err


def test_folders_of_another_config_are_not_taken_for_these_points(tmp_path, capsys):
    path, root = experiment(tmp_path), tmp_path / "runs"
    (point, _) = grid.load(path).points
    folder = root / point.name
    folder.mkdir(parents=True)
    flat = flatten(sweep.resolve(point))
    (folder / "config.json").write_text(json.dumps(flat | {"optim.lr": 0.5}))
    run_files.write_status(folder, "done", 2, 2)
    code, _, err = call(capsys, path, "--run", f"--root={root}")
    assert code == 2 and "another optim.lr" in err
    code, out, err = call(capsys, path, "--table", f"--root={root}")
    assert code == 0 and "another optim.lr" in err and "log_prob" not in out
    (folder / "config.json").write_text("[1]")
    err = call(capsys, path, "--table", f"--root={root}")[2]
    assert f"{folder}/config.json: not JSON, or not an object; delete the folder" in err
    (folder / "config.json").write_text(json.dumps(flat | {"report.console_samples": 3}))
    assert "log_prob" in call(capsys, path, "--table", f"--root={root}")[1], "what is shown may differ"


# ------------------------------------------------------------------------------------------- as a user runs it


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    path = experiment(tmp_path)
    text = Path(path).read_text().replace("(0,)", "range(3000)")  # more than a pipe holds
    Path(path).write_text(text)
    command = [sys.executable, "-m", "rl_likelihood.sweep", path, f"--root={tmp_path}", "--status"]
    line = f"set -o pipefail; {shlex.join(command)} | head -n 1"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "") and "new" in done.stdout


def start(path: str, root: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "rl_likelihood.sweep", path, f"--root={root}", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


@pytest.mark.slow
def test_a_sweep_survives_kills_and_is_reported(tmp_path):
    """Two real runs: the training process is killed once, the sweep is interrupted once and started again."""
    path, root = experiment(tmp_path, train__steps=25, eval__prompts=4), tmp_path / "runs"
    first, second = (root / p.name for p in grid.load(path).points)

    process = start(path, root, "--run")
    wait_for(lambda: grid.last_step(first) >= 3, process)
    os.kill(grid.read_attempts(first)[0]["pid"], signal.SIGKILL)
    wait_for(lambda: grid.last_step(second) >= 3, process)  # the first one goes to the back of the queue
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "preempted  reward=log_prob" in out and "stopping after their steps" in out
    assert grid.state(first).preemptions == 1 and grid.state(second).kind == "preempted"
    assert run_files.read_status(second)["state"] == "interrupted" and 3 <= grid.state(second).step < 25

    out, err = start(path, root, "--run").communicate(timeout=600)
    assert "2 done" in out, out + err
    for workdir in (first, second):
        assert [row["step"] for row in run_files.read(workdir / "metrics.jsonl")] == list(range(1, 26))
        assert grid.state(workdir).kind == "done" and grid.state(workdir).failures == 0

    before = (first / "metrics.jsonl").stat().st_mtime_ns
    process = start(path, root, "--run")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "0 to run" in out
    assert (first / "metrics.jsonl").stat().st_mtime_ns == before, "a finished point is never run again"

    out, _ = start(path, root, "--status").communicate(timeout=120)
    assert "0  done          25/25" in out and "2 done of 2" in out
    out, _ = start(path, root, "--table", "--format=csv").communicate(timeout=120)
    evals = {w: run_files.read(w / "eval.jsonl")[-1] for w in (first, second)}
    assert f"sft,perplexity,perplexity_no_chain,{round(evals[second]['perplexity_no_chain'], 6)!r},,," in out
    out, err = start(path, root, "--report").communicate(timeout=300)
    names = {Path(line).name for line in out.split()}
    assert {"table.md", "table.tex", "table.csv", "report.html"} <= names, err
    assert {"summary.png", "curves.png", "correlations.svg"} <= names, err
    assert (root / "report.html").stat().st_size > 50_000


@pytest.mark.slow
def test_a_run_that_outlives_its_killed_sweep_is_running_and_is_not_run_twice(tmp_path):
    """A real run, suspended so that it surely lives on; in the end it is killed too, and gone on with."""
    path, root = experiment(tmp_path, train__steps=12, eval__prompts=0, mesh__fsdp=1, mesh__tensor=1), tmp_path / "runs"
    workdir = root / grid.load(path).points[0].name
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "rl_likelihood.sweep", path, f"--root={root}", "--only", "reward=log_prob"]
    begin = lambda action: subprocess.Popen(
        [*command, action], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = begin("--run")
    wait_for(lambda: grid.last_step(workdir) >= 2, first)
    run = grid.read_attempts(workdir)[0]["pid"]
    os.kill(run, signal.SIGSTOP)
    killed = threading.Event()

    def touch():  # the heartbeat of a run that is not suspended
        while not killed.wait(1):
            os.utime(workdir / "LOCK")

    heartbeat = threading.Thread(target=touch)
    heartbeat.start()
    try:
        first.kill()
        first.communicate()
        out, _ = begin("--status").communicate(timeout=300)
        assert "0  running " in out and "1 running of 1" in out
        second = begin("--run")
        lines = iter(second.stdout.readline, "")
        assert any(f"elsewhere  {workdir.name}: process {run} on this host" in line for line in lines)
        assert [row["event"] for row in grid.read_attempts(workdir)] == ["start"]
    finally:
        killed.set()
        heartbeat.join()
        os.kill(run, signal.SIGKILL)
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0 and out.endswith("1 done\n"), out + err
    state = grid.state(workdir)
    assert (state.kind, state.step, state.failures, state.preemptions) == ("done", 12, 0, 1)
    assert [row["step"] for row in run_files.read(workdir / "metrics.jsonl")] == list(range(1, 13))
    log = (workdir / grid.LOG).read_text()
    assert "waiting up to" not in log and log.count("taken over") == 1, "only the lock of the killed run was in the way"
    assert f"taken over from process {run} on this host" in log
