"""The command as a user runs it: refusals in one line, --print_config, --dry_run, Ctrl-C."""

import signal

from rl_likelihood.runtime import checkpoint, run_files
from tests.commands import command, run_each
from tests.runs import config_file

REFUSED = [
    (["--config=configs/tiny.py", "--config.reward.nam=prob"], ["nam", "name"]),
    (["--config=configs/tiny.py", "--config.train.steps=many"], ["train.steps", "many"]),
    (["--config=configs/tiny.py", "--config.learning_rate=1e-4"], ["no field learning_rate"]),
    (["--config=configs/tiny.py", "--config.sampler.top_p=0.9"], ["no field sampler.top_p", "--config.eval.top_p is"]),
    (["--config=configs/tiny.py", "--config.train.batch_size=8"], ["no field train.batch_size"]),
    (["--config="], ["--config is empty"]),
    (["--config=configs"], ["which is a folder"]),
    (["--config=configs/tiny.py", "--config.reward=prob"], ["reward is a group", "--config.reward.name"]),
    (["--config", "configs/tinny.py"], ["configs/tinny.py does not exist", "did you mean tiny.py?"]),
    (["--config=configs/tiny.py:gruop=4"], ["'gruop' is unknown", "group"]),
    (["--config=configs/tinny.py"], ["configs/tinny.py does not exist", "did you mean tiny.py?"]),
    (["--config=configs/tiny.py", "--wrkdir=x"], ["wrkdir"]),
    (["--config=configs/tiny.py"], ["--workdir is missing"]),
    (["--config=configs/tiny.py", "--workdir=s3://b/run"], ["--workdir is s3://b/run", "gcsfuse"]),
    (["--config=configs/tiny.py", "--workdir=gs://bucket"], ["--workdir is 'gs://bucket'", "gs://bucket/run"]),
    ([], ["--config is missing"]),
]


def test_the_command_line_refuses_in_one_line():
    for done, (_, words) in zip(run_each("train", [arguments for arguments, _ in REFUSED]), REFUSED, strict=True):
        lines = [line for line in done.stderr.strip().splitlines() if line]
        assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), (done.args, done.stderr)
        assert [word for word in words if word not in lines[0]] == [], (done.args, done.stderr)


def test_print_config_shows_who_set_what():
    process = command(
        "train", "--config=configs/tiny.py", "--config.preset=rlpr", "--config.filter.beta=0.9", "--print_config"
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    for line in (
        '* preset = "rlpr"',
        "* filter.beta = 0.9   (preset: 0.5)",
        'p reward.baseline = "frozen"',
        "p loss.clip_high = 0.27",
        "+ optim.lr = 0.002",
        "  optim.b1 = 0.9",
    ):
        assert line in out.splitlines(), line


def test_dry_run_reports_memory_and_writes_nothing(tmp_path):
    config = config_file(tmp_path, model__layers="unroll", loss__kl="k3", loss__kl_coef=0.1)
    process = command("train", f"--config={config}", "--dry_run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "GiB of state and batch" in out and "tokens   at most" in out
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"small.py"}


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    config = config_file(tmp_path, train__steps=60, train__checkpoint_every=50, eval__prompts=0)
    arguments = (f"--config={config}", f"--workdir={tmp_path / 'run'}")
    process = command("train", *arguments)
    for line in process.stdout:
        if line.startswith("step  3/60"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "run the same command" in out
    status = run_files.read_status(tmp_path / "run")
    assert status["state"] == "interrupted" and 3 <= status["step"] < 60
    assert checkpoint.latest_step(tmp_path / "run") == status["step"]
    process = command("train", *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert [row["step"] for row in run_files.read(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 61))
