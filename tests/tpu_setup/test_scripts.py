"""What each script would do (DRY_RUN=1), and what it refuses."""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from rl_likelihood.planning import aot
from tests.tpu_setup.scripts import CLOUD, ROOT, SCRIPTS, WHERE, commands, gcloud, script


def test_every_script_is_executable_but_the_shared_values():
    assert {p.name for p in SCRIPTS.glob("*.sh") if not os.access(p, os.X_OK)} == {"common.sh"}


def test_shellcheck_finds_nothing():
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"  # of the extra test
    files = sorted(map(str, SCRIPTS.glob("*.sh")))
    done = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "topology, accelerator, runtime",
    [
        ("v5e:4x4", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v6e:2x2", "v6e-4", "v2-alpha-tpuv6e"),
        ("v5p:2x2x1", "v5p-8", "v2-alpha-tpuv5"),
        ("v4:2x2x2", "v4-16", "tpu-ubuntu2204-base"),
    ],
)
def test_create_asks_for_the_chips_of_the_topology(topology, accelerator, runtime):
    out = commands(script("create.sh", **CLOUD, TOPOLOGY=topology))
    options = [*WHERE, f"--accelerator-type={accelerator}", f"--runtime-version={runtime}", "--spot"]
    assert out == [[*gcloud("queued-resources create rl-likelihood --node-id=rl-likelihood"), *options]]


@pytest.mark.parametrize("kind", ["v4", "v5e", "v5p", "v6e"])
def test_the_shapes_are_those_that_plan_knows(kind):
    """Others do not exist, or are another torus than the one that the number of chips stands for."""
    known = aot.SHAPES[aot.CHIPS[kind].dims]
    others = {"v4": ("2x2x8", "2x2"), "v5e": ("3x5", "4x4x4", "2x2 2x4"), "v5p": ("2x2", "4x2x2"), "v6e": ("1x2",)}
    for shape in others[kind]:
        (line,) = script("create.sh", **CLOUD, TOPOLOGY=f"{kind}:{shape}", check=2).stderr.splitlines()
        assert f"'{kind}:{shape}'" in line
        assert " " in shape or line.endswith(f"; {kind} has {', '.join(known)}")
    chips = aot.chips_of(f"{kind}:{known[-1]}")
    (out,) = commands(script("create.sh", **CLOUD, TOPOLOGY=f"{kind}:{known[-1]}"))
    assert out[-3].endswith(f"-{2 * chips if kind in ('v4', 'v5p') else chips}")


def test_create_without_queue_at_full_price():
    out = commands(script("create.sh", **CLOUD, QUEUED="0", PRICING="on-demand", TPU_NAME="mine", RUNTIME="r"))
    options = [*WHERE, "--accelerator-type=v5litepod-16", "--runtime-version=r"]
    assert out == [[*gcloud("tpu-vm create mine"), *options]]


def test_delete():
    (out,) = commands(script("delete.sh", **CLOUD))
    assert out == [*gcloud("queued-resources delete rl-likelihood"), *WHERE, "--quiet", "--force"]
    (out,) = commands(script("delete.sh", **CLOUD, QUEUED="0"))
    assert out == [*gcloud("tpu-vm delete rl-likelihood"), *WHERE, "--quiet"]


def test_setup_sends_the_commit_and_makes_the_environment_on_all_workers(tmp_path):
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    if not commit:
        pytest.skip("not a git checkout")
    archive, send, make, check = commands(
        script("setup.sh", **CLOUD, TMPDIR=str(tmp_path), NFS="10.0.0.2:/share", EXTRAS="judge,ray")
    )
    file = f"{tmp_path}/rl_likelihood-{commit[:12]}.tar.gz"
    assert archive == [*git, "archive", "--format=tar.gz", "--prefix=rl_likelihood/", f"--output={file}", commit]
    assert send == [*gcloud("tpu-vm scp"), file, "rl-likelihood:code.tar.gz", *WHERE, "--worker=all"]
    ssh = [*gcloud("tpu-vm ssh rl-likelihood"), *WHERE, "--worker=all"]
    assert make[:-1] == check[:-1] == ssh
    assert make[-1].startswith("--command=tar -xzf code.tar.gz && ") and commit in make[-1]
    assert make[-1].endswith("NFS='10.0.0.2:/share' EXTRAS='judge,ray' bash rl_likelihood/tpu_setup/worker.sh setup")
    assert "jax.device_count()" in check[-1]
    assert not list(tmp_path.iterdir())  # nothing was done


def test_setup_sends_keys_as_a_file_that_others_cannot_read(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# mine\nWANDB_API_KEY=0123\n\nHF_TOKEN=hf_abc\n")
    done = script("setup.sh", **CLOUD, TMPDIR=str(tmp_path), SECRETS=str(keys))
    assert "0123" not in done.stdout + done.stderr and "hf_abc" not in done.stdout + done.stderr
    protect, send = commands(done)[2:4]
    assert protect[-1] == "--command=install -m 600 /dev/null .rl_likelihood_secrets"
    assert send == [*gcloud("tpu-vm scp"), str(keys), "rl-likelihood:.rl_likelihood_secrets", *WHERE, "--worker=all"]


@pytest.mark.parametrize("line", ['HF_TOKEN="0123"', "HF_TOKEN='0123'", "HF_TOKEN=0123\r"])
def test_keys_whose_marks_would_become_part_of_them_are_refused(line, tmp_path):
    (tmp_path / "keys").write_text(f"# mine\n{line}\n", newline="")
    done = script("setup.sh", check=2, **CLOUD, SECRETS=str(tmp_path / "keys"))
    assert "keys:2 has quotes or a carriage return" in done.stderr and "0123" not in done.stderr


def test_copy_refuses_names_that_gcloud_would_not_take_for_files(tmp_path):
    (tmp_path / "a:b").touch()
    assert "rename a path with a colon" in script("copy.sh", str(tmp_path / "a:b"), check=2, **CLOUD).stderr


@pytest.mark.parametrize("nfs, target, worker", [("10.0.0.2:/share", "share/", "0"), ("", "", "all")])
def test_copy_sends_weights_and_data_once_to_the_share_or_to_every_worker(tmp_path, nfs, target, worker):
    (out,) = commands(script("copy.sh", str(tmp_path), **CLOUD, NFS=nfs))
    words = [*gcloud("tpu-vm scp --recurse"), str(tmp_path), f"rl-likelihood:{target}", *WHERE, f"--worker={worker}"]
    assert out == words


def test_run_sends_one_command_to_all_workers_word_for_word():
    words = ["python", "-m", "x", "--config=configs/tiny.py:reward=jepo", "--name=two words", "--a=with key=value"]
    (out,) = commands(script("run.sh", *words, **CLOUD, RUN_NAME="first"))
    assert out[:-1] == [*gcloud("tpu-vm ssh rl-likelihood"), *WHERE, "--worker=all"]
    remote = shlex.split(out[-1].removeprefix("--command="))
    assert remote == ["bash", "rl_likelihood/tpu_setup/worker.sh", "run", "first", *words]
    (again,) = commands(script("run.sh", *words, **CLOUD, RESTART="1"))
    assert " restart run " in again[-1]


def test_logs():
    (out,) = commands(script("logs.sh", **CLOUD, RUN_NAME="first", TAIL="5"))
    assert out[-1].startswith("--command=tail -n 5 runs/first/log")


def test_babysit_makes_the_slice_sets_it_up_and_runs():
    out = commands(script("babysit.sh", "python", "-m", "x", **CLOUD))
    assert [" ".join(line[3:5]) for line in out] == [
        "queued-resources create",
        "archive --format=tar.gz",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "tpu-vm ssh",
    ]
    assert out[-1][-1].endswith("worker.sh run run python -m x")


def test_a_sweep_is_its_points_commands_one_after_the_other(tmp_path):
    values = {**CLOUD, "ROOT": "../share/runs/mine", "PYTHON": sys.executable}
    out = commands(script("sweep.sh", "experiments/cpu_grid.py", "--only", "task=short", "--only", "seed=0", **values))
    assert [words[0] for words in out] == [str(SCRIPTS / "babysit.sh")] * 9
    assert out[0][1:] == ["python", "-m", "rl_likelihood.sweep", "experiments/cpu_grid.py", "--prepare"]
    assert all(words[1:4] == ["python", "-m", "rl_likelihood.train"] for words in out[1:])
    workdirs = [words[-1] for words in out[1:]]
    assert len(set(workdirs)) == 8 and all(w.startswith("--workdir=../share/runs/mine/reward=") for w in workdirs)
    assert "--config.preset=kw_base_rl" in out[1]


def test_a_sweep_goes_on_after_a_point_that_fails_and_names_it(tmp_path):
    """With a python that prints two commands as the sweep and fails in the first of them."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\nif [[ $2 == rl_likelihood.sweep ]]; then printf '%s\\n' "
        f"'{python} one \"a b\" --workdir=x' '{python} two --workdir=y'; exit; fi\n"
        f'echo "$1,$2" >> {tmp_path}/ran; [[ $1 == two ]]\n'
    )
    python.chmod(0o755)
    values = {"LOCAL": "1", "ROOT": "runs", "PYTHON": str(python), "MAX_FAILURES": "1", "BACKOFF": "0"}
    done = script("sweep.sh", "experiments/x.py", check=1, **values)
    assert (tmp_path / "ran").read_text().split("\n")[:2] == ["one,a b", "two,--workdir=y"]
    assert done.stderr.splitlines()[-2:] == ["left:", "  --workdir=x (exit 1)"]


@pytest.mark.parametrize(
    "name", [path.name for path in SCRIPTS.glob("*.sh") if path.name not in ("common.sh", "worker.sh")]
)
def test_help_is_the_comment_at_the_head_and_nothing_is_done(name):
    said = script(name, "--help", **CLOUD, IMAGE="i", CLAIM="c", ROOT="r").stdout
    head = (SCRIPTS / name).read_text().partition("\nset -e")[0].splitlines()[1:]
    assert said.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in head]


@pytest.mark.parametrize(
    "name, arguments, values, words",
    [
        ("create.sh", [], {}, ["PROJECT", "ZONE"]),
        ("run.sh", ["x"], {"PROJECT": "p"}, ["not set: ZONE"]),
        ("run.sh", [], CLOUD, ["no command"]),
        ("babysit.sh", [], {"LOCAL": "1"}, ["no command"]),
        ("babysit.sh", ["x"], {}, ["PROJECT", "ZONE"]),
        ("create.sh", [], {**CLOUD, "TOPOLOGY": "v5litepod-16"}, ["v5litepod-16", "v5e:4x4"]),
        ("create.sh", [], {**CLOUD, "PRICING": "cheap"}, ["cheap", "spot, on-demand or reserved"]),
        ("setup.sh", [], {**CLOUD, "COMMIT": "nowhere"}, ["nowhere", "no commit"]),
        ("setup.sh", [], {**CLOUD, "NFS": "gs://bucket"}, ["NFS is 'gs://bucket'", "HOST:/SHARE"]),
        ("setup.sh", [], {**CLOUD, "EXTRAS": "math; rm"}, ["EXTRAS", "judge,ray"]),
        ("setup.sh", [], {**CLOUD, "EXTRAS": "ray,mth"}, ["EXTRAS has 'mth'", "setup.py", "ray", "tpu"]),
        ("setup.sh", [], {**CLOUD, "SECRETS": "/nowhere"}, ["SECRETS is '/nowhere'"]),
        ("setup.sh", [], {**CLOUD, "NFS": "h:/it's"}, ["NFS is 'h:/it's'", "HOST:/SHARE"]),
        ("copy.sh", ["/tmp"], {**CLOUD, "NFS": "share"}, ["NFS is 'share'"]),
        ("copy.sh", ["/nowhere"], CLOUD, ["/nowhere does not exist"]),
        ("logs.sh", [], {**CLOUD, "TAIL": "5; rm -r x"}, ["TAIL is '5; rm -r x'", "whole number from 1"]),
        ("worker.sh", [], {}, ["run NAME COMMAND"]),
        ("worker.sh", ["begin"], {}, ["run NAME COMMAND"]),
        ("worker.sh", ["once"], {}, ["once COMMAND"]),
        ("worker.sh", ["run"], {}, ["run NAME COMMAND"]),
        ("worker.sh", ["restart", "one"], {}, ["restart NAME COMMAND"]),
        ("jobset.sh", ["x", "--workdir=/share/../x"], {"IMAGE": "i", "CLAIM": "c"}, ["/share/../x", "below /share"]),
        ("run.sh", ["env", "WANDB_API_KEY=0123", "x"], CLOUD, ["WANDB_API_KEY", "SECRETS=FILE"]),
        ("run.sh", ["bash", "-c", "export HF_TOKEN=0123; x"], CLOUD, ["HF_TOKEN", "SECRETS=FILE"]),
        ("run.sh", ["x", "--config.judge.api_key=0123"], CLOUD, ["API_KEY", "SECRETS=FILE"]),
        ("run.sh", ["env", "wandb_api_key=0123", "x"], CLOUD, ["WANDB_API_KEY"]),
        ("babysit.sh", ["env", "HF_TOKEN=0123", "x"], {"LOCAL": "1"}, ["HF_TOKEN", "SECRETS=FILE"]),
        ("jobset.sh", ["env", "HF_TOKEN=0123", "x"], {"IMAGE": "i", "CLAIM": "c"}, ["HF_TOKEN"]),
        ("jobset.sh", ["x"], {"IMAGE": "i", "CLAIM": "c", "PRICING": "reserved"}, ["RESERVATION"]),
        ("delete.sh", [], {**CLOUD, "DRY_RUN": "true"}, ["DRY_RUN is 'true'", "0 or 1"]),
        ("babysit.sh", ["x"], {"LOCAL": "yes"}, ["LOCAL is 'yes'"]),
        ("run.sh", ["x"], {**CLOUD, "RUN_NAME": "my run"}, ["RUN_NAME is 'my run'"]),
        ("create.sh", [], {**CLOUD, "TPU_NAME": "Mine"}, ["TPU_NAME is 'Mine'"]),
        ("run.sh", ["x", "--token", "0123"], CLOUD, ["TOKEN is on the command line", "SECRETS=FILE"]),
        ("run.sh", ["bash", "-c", "WANDB_API_KEY2=abc python x"], CLOUD, ["WANDB_API_KEY2 is on the command line"]),
        ("run.sh", ["x", "--env=HF_TOKEN=short"], CLOUD, ["HF_TOKEN is on the command line"]),
        ("run.sh", ["env", "HF_PAT=abc", "x"], CLOUD, ["HF_PAT is on the command line"]),
        ("run.sh", ["bash", "-c", f"wandb login {'01234abcde' * 4}; x"], CLOUD, ["looks like a key (012...)"]),
        ("jobset.sh", ["x", "MY_TOKEN=1"], {"IMAGE": "i", "CLAIM": "c"}, ["MY_TOKEN is", "set SECRET=NAME"]),
        ("jobset.sh", ["bash", "-c", "x; y --workdir='runs/0'"], {"IMAGE": "i", "CLAIM": "c"}, ["runs/0", "/share"]),
        ("jobset.sh", ["x", "-workdir=runs/0"], {"IMAGE": "i", "CLAIM": "c"}, ["runs/0", "below /share"]),
        ("setup.sh", [], {**CLOUD, "SECRETS": "a:b"}, ["SECRETS is 'a:b'", "colon"]),
        ("jobset.sh", ["x", "--workdir", "runs/0"], {"IMAGE": "i", "CLAIM": "c"}, ["runs/0", "below /share"]),
        ("jobset.sh", ["x"], {"IMAGE": "i", "CLAIM": "c", "RESTARTS": "many"}, ["RESTARTS is 'many'"]),
        ("run.sh", ["x", "--workdir=gs://b/run"], CLOUD, ["--workdir=gs://b/run is no folder", "gcsfuse"]),
        ("babysit.sh", ["x", "--workdir", "gs://b/run"], {"LOCAL": "1"}, ["gs://b/run is no folder"]),
        ("jobset.sh", ["x", "--workdir=gs://b"], {"IMAGE": "i", "CLAIM": "c"}, ["gs://b is no folder"]),
        ("jobset.sh", ["x"], {}, ["IMAGE", "CLAIM"]),
        ("jobset.sh", ["x"], {"TPU_NAME": "a" * 41, "IMAGE": "i", "CLAIM": "c"}, ["at most 40"]),
        ("babysit.sh", ["x"], {"LOCAL": "1", "PROCESSES": "0"}, ["PROCESSES is '0'"]),
        ("babysit.sh", ["x"], {"LOCAL": "1", "HEALTHY": "10m"}, ["HEALTHY is '10m'"]),
        ("create.sh", [], {**CLOUD, "POLL": "abc"}, ["POLL is 'abc'"]),
        ("run.sh", ["x"], {**CLOUD, "REMOTE_DIR": "a b"}, ["REMOTE_DIR is 'a b'"]),
        ("delete.sh", ["mine"], CLOUD, ["unknown argument 'mine'"]),
    ],
)
def test_refusals_are_one_line_that_names_what_is_missing(name, arguments, values, words):
    done = script(name, *arguments, check=2, **values)
    assert len(done.stderr.splitlines()) == 1 and all(word in done.stderr for word in words), done.stderr
    assert done.stdout == "" and "0123" not in done.stderr, "a key is not printed"
