"""What the mains settle before jax starts: flags and their refusals, XLA's flags, where compiled programs are kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from rl_likelihood.cli.command import explained, guarded, in_order, refuse_address
from rl_likelihood.errors import UserError
from rl_likelihood.runtime import distributed
from tests.commands import run_each

ROOT = Path(__file__).parents[2]
ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler"
SEVERAL = "--xla_force_host_platform_device_count=4"


def test_only_several_cpu_devices_are_put_in_order_and_a_user_s_word_stands():
    assert in_order("") == "" and in_order("--xla_cpu_max_isa=AVX2") == "--xla_cpu_max_isa=AVX2"
    assert in_order(SEVERAL).split() == [SEVERAL, f"{ORDER}=false"]
    assert in_order(f"{SEVERAL} {ORDER}=true").split() == [SEVERAL, f"{ORDER}=true"]


def test_ctrl_c_is_one_sentence_and_exit_130(capfd):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        guarded(main)
    assert end.value.code == 130
    assert capfd.readouterr().err == "stopped; the same command goes on from what was saved, if anything was\n"


def test_a_run_that_was_stopped_ends_with_the_code_that_was_asked_for(monkeypatch, capfd):
    guarded(lambda: True)  # 0, without the variable
    for value, stopped, code in (("143", True, 143), ("x", False, 2), ("²", False, 2), ("256", False, 2)):
        monkeypatch.setenv("STOPPED_EXIT", value)
        with pytest.raises(SystemExit) as end:
            guarded(lambda stopped=stopped: stopped)
        assert end.value.code == code
    assert capfd.readouterr().err.count("STOPPED_EXIT is") == 3
    monkeypatch.setenv("STOPPED_EXIT", "143")
    guarded(lambda: False)


def test_the_number_of_a_process_is_of_digits_that_int_reads(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "²")
    with pytest.raises(UserError, match="--process_id is '²'"):
        distributed.start("a:1", 2)


def kept_in(folder: Path, **environment: str) -> str:
    """The folder of compiled programs of a process with this environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "RL_LIKELIHOOD"))}
    code = (
        "import jax; from rl_likelihood.cli.command import keep_programs; keep_programs(); "
        "print(jax.config.jax_compilation_cache_dir); jax.jit(lambda x: x + 1).lower(1.0).compile()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=clean | {"XDG_CACHE_HOME": str(folder)} | environment,
        cwd=ROOT,
    )
    return done.stdout.strip()


def test_compiled_programs_are_kept_in_the_user_s_cache_unless_told_otherwise(tmp_path):
    assert kept_in(tmp_path) == str(tmp_path / "rl_likelihood" / "programs")
    assert kept_in(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == str(tmp_path / "mine")


def command(main: str, *arguments: str) -> subprocess.CompletedProcess:
    """A main as a user calls it."""
    words = [sys.executable, "-m", f"rl_likelihood.{main}", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.mark.parametrize("main", ["train", "evaluate", "export", "plan", "sweep"])
def test_help_exits_0_and_lists_the_flags(main):
    flags = {
        "train": ["--config", "--workdir", "--print_config", "--dry_run", "--force", "--coordinator", "--config.FIELD"],
        "evaluate": ["--config", "--workdir", "--step", "--json", "--out"],
        "export": ["--workdir", "--out", "--step", "--dtype"],
        "plan": ["--config", "--topology", "--slices", "--memory_gib", "--json"],
        "sweep": ["--list", "--run", "--status", "--table", "--report", "--runner"],
    }[main]
    done = command(main, "--help")
    assert done.returncode == 0, done.stderr
    assert [flag for flag in flags if flag not in done.stdout] == []
    assert "Traceback" not in done.stderr and "logtostderr" not in done.stdout


WRONG = [
    (["--config=configs/tiny.py:rewrd=prob"], ["'rewrd' is unknown", "reward, group"]),
    (["--config=configs/tiny.py:reward"], ["'reward' has no value"]),
    (["--config=configs/tiny.py:reward="], ["reward.name is ''; write a name"]),
    (["--config=configs/tiny.py:steps=3,,seed=1"], ["'steps=3,,seed=1'", "a comma too many"]),
    (["--config=configs/tiny.py", "--workdir="], ["--workdir is empty"]),
    (["--config=configs/tiny.py", "--workdir", "--dry_run"], ["--workdir is --dry_run", "give a folder"]),
    (["--config=configs/tiny.py", "--coordinator_wait=nan"], ["--coordinator_wait is nan", "a finite number"]),
    (["--config=configs/tiny.py", "--coordinator_wait=inf"], ["--coordinator_wait is inf", "a finite number"]),
    (["--config={other}"], ["get_config() gives {'seed': 1}", "configs/base.py"]),
    (["--config={unknown}"], ["unknown.py:4: ", "lrr"]),
    (["--config={syntax}"], ["syntax.py:1: SyntaxError"]),
    (["--config={ends}"], ["ends.py:2: SystemExit: 3"]),
    (["--config={missing}"], ["missing.py:3: FileNotFoundError", "none.txt"]),
    (["--config={imported}", "--config.seed=-1"], ["seed is -1"]),
    (["--config={nothing}"], ["nothing.py has no function get_config()"]),
    (["--config=configs/tiny.py", "--config.seed=-1"], ["seed is -1", "at least 0"]),
    (["--config=configs/tiny.py:seed=4294967296"], ["seed is 4294967296", "at most 4294967295"]),
]


FILES = {
    "other": "def get_config(arg=''):\n    return {'seed': 1}\n",
    "unknown": "from configs.base import get_config as base\ndef get_config(arg=''):\n    c = base()\n    c.lrr = 1\n",
    "syntax": "def get_config()\n",
    "ends": "import sys\nsys.exit(3)\ndef get_config(): pass\n",
    "missing": "from configs.base import get_config as base\ndef get_config(arg=''):\n    open('none.txt')\n",
    "imported": "from configs.tiny import *\n",
    "nothing": "x = 1\n",
}


def test_a_wrong_command_line_is_one_sentence_and_exit_code_2(tmp_path):
    paths = {name: tmp_path / "configs" / f"{name}.py" for name in FILES}
    (tmp_path / "configs").mkdir()
    for name, text in FILES.items():
        paths[name].write_text(text)
    workdir = f"--workdir={tmp_path / 'run'}"
    # If a flag is given twice, the last one counts.
    lines = [[workdir, *(word.format(**paths) for word in arguments)] for arguments, _ in WRONG]
    for done, (_, words) in zip(run_each("train", lines), WRONG, strict=True):
        assert done.returncode == 2, (done.args, done.stderr)
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("error: ") and [word for word in words if word not in line] == [], (done.args, line)
    assert not (tmp_path / "run").exists()


def test_folders_below_the_home_folder(tmp_path):
    words = f"error: {tmp_path}/run/checkpoints: no checkpoint here"
    (done,) = run_each("export", [["--workdir=~/run", "--out=~/out"]], HOME=str(tmp_path))
    assert done.stderr.startswith(words), done.stderr
    (done,) = run_each("evaluate", [["--config=configs/tiny.py", "--workdir=~/run"]], HOME=str(tmp_path))
    assert f"{tmp_path}/run" in done.stderr and "~" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "value, words",
    [("lr=", "--lr is ''; it must be a number"), ("n=1.5", "--n is '1.5'; it must be a whole number")]
    + [("force=maybe", "--force is 'maybe'; it must be true or false"), ("n=-1", "flag --n=-1: -1 is not")],
)
def test_a_value_of_another_kind_is_refused_in_words(value, words):
    own = flags.FlagValues()
    flags.DEFINE_float("lr", 1.0, "", flag_values=own)
    flags.DEFINE_integer("n", 1, "", flag_values=own, lower_bound=1)
    flags.DEFINE_bool("force", False, "", flag_values=own)
    with pytest.raises(flags.Error) as error:
        own(["train", f"--{value}"])
    assert explained(error.value, []).startswith(words)


def test_a_folder_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(UserError, match="--workdir is .*too long"):
        refuse_address("--workdir", str(tmp_path / ("a" * 300)))
    refuse_address("--workdir", str(tmp_path / "new"))
    for address in ("gs:/bucket/run", "s3://bucket/run", "GS://bucket/run", "file:///run"):
        with pytest.raises(UserError, match=f"--workdir is {address}, which is no folder"):
            refuse_address("--workdir", address)
