"""A trace of some steps, and the refusal of steps that are none."""

import ast
import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.runtime.profile import PARTS, SAMPLING, Op, Profile, device_ops, seconds
from rl_likelihood.sampler import decode, engine
from tests.runs import run, small_config
from tests.runtime.processes import processes_of, said

TWO = """
import sys
from pathlib import Path
from rl_likelihood.runtime import distributed
distributed.start(sys.argv[1], 2, int(sys.argv[2]), heartbeat=60.0)
import jax.numpy as jnp
from rl_likelihood.runtime.profile import Profile
profile = Profile(Path(sys.argv[3]), (1, 1))
profile.before(1)
print("traces", profile.running, flush=True)
jnp.ones(3).sum().block_until_ready()
profile.after(1)
distributed.finish()
"""


def test_a_trace_of_the_steps_asked_for_and_of_no_others(tmp_path, capsys):
    profile, off = Profile(tmp_path / "run", (2, 3)), Profile(tmp_path / "off", ())
    running = []
    for step in range(1, 6):
        profile.before(step)
        off.before(step)
        jnp.ones(3).sum().block_until_ready()
        running.append(profile.running)
        profile.after(step)
        off.after(step)
    profile.close()
    assert running == [False, True, True, False, False]
    assert len(list((tmp_path / "run").rglob("*.xplane.pb"))) == 1
    (file,) = (tmp_path / "run").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert any(event.get("ph") == "X" and event["dur"] > 0 for event in events)
    out = capsys.readouterr().out
    assert "steps 2 to 3" in out and "without a summary" not in out and not (tmp_path / "off").exists()


def test_a_run_that_resumes_between_the_steps_traces_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    monkeypatch.setattr("rl_likelihood.runtime.profile.summary", lambda folder, wall, steps: f"{steps} steps")
    profile = Profile(tmp_path, (2, 4))
    for step in range(3, 7):
        profile.before(step)
        profile.after(step)
    out = capsys.readouterr().out
    assert "steps 3 to 4 in" in out and "2 steps" in out and out.count("profile ") == 2


def test_a_run_that_resumes_after_the_steps_says_that_nothing_is_traced(tmp_path, capsys):
    c = {"train__steps": 3, "report__profile": (1, 2), "eval__prompts": 0}
    folder = run(tmp_path / "run", train__steps=2, eval__prompts=0)
    assert "profile" not in capsys.readouterr().out
    run(folder, **c)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("profile ")]
    assert line == "profile  nothing is traced: step 2, the last of report.profile, is already done"
    assert not (folder / "profile").exists()


def test_a_run_that_ends_between_the_steps_says_that_it_has_no_summary(tmp_path, capsys):
    profile = Profile(tmp_path, (1, 3))
    profile.before(1)
    profile.after(1)
    profile.close()
    profile.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("profile  ended before step 3") and list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.slow
def test_of_two_processes_with_one_workdir_the_first_traces(tmp_path):
    both = processes_of(TWO, 2, tmp_path)
    lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [0, 0], lines
    assert lines[0][0] == "traces True" and "on the first device" in lines[0][-1]
    assert lines[1] == ["traces False"], "two hosts would write into one folder, which jax refuses"


def test_a_line_says_what_the_devices_of_a_run_did(tmp_path, capsys):
    c = small_config(train__steps=2, report__profile=(2, 2), eval__prompts=0)
    train.run(build(c), tmp_path / "run")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "on the first device" in line]
    seconds = {name: float(value) for name, value in re.findall(r"(\w+) (\S+) s(?:,|$)", line)}
    assert set(seconds) == {*PARTS, "host"}
    assert all(seconds[name] > 0 for name in ("sampling", "forward", "backward", "update")), line


def test_the_operation_that_began_last_counts_and_idle_time_counts_nowhere():
    ops = [
        Op(0, 6e9, "jit_step", "while"),
        Op(1e9, 3e9, "jit_step", "back"),
        Op(4e9, 5e9, "jit_step", "adam"),
        Op(8e9, 9e9, "jit_prefill", "dot"),
        Op(9e9, 9.5e9, "jit_convert", "copy"),
    ]
    origins = {
        ("jit_step", "while"): "jit(step)/jvp()/while",
        ("jit_step", "back"): "jit(step)/transpose(jvp())/dot_general",
        ("jit_step", "adam"): "jit(step)/update/mul",
    }
    assert seconds(ops, origins) == {"sampling": 1, "forward": 3, "backward": 2, "update": 1, "other": 0.5}


def test_a_tpu_s_operations_belong_to_the_program_that_runs():
    def event(name, start, end, **stats):
        return SimpleNamespace(name=name, start_ns=start, end_ns=end, stats=list(stats.items()))

    modules = [event("jit_prefill(12)", 0, 10), event("jit_step(7)", 10, 30)]
    work = [event("%fusion.1 = f32[] fusion()", 1, 4), event("%fusion.1 = f32[] fusion()", 12, 20)]
    lines = [SimpleNamespace(name="XLA Modules", events=modules), SimpleNamespace(name="XLA Ops", events=work)]
    host = SimpleNamespace(name="/host:CPU", lines=[])
    data = SimpleNamespace(planes=[host, SimpleNamespace(name="/device:TPU:0", lines=lines)])
    wanted = [Op(1, 4, "jit_prefill", "fusion.1"), Op(12, 20, "jit_step", "fusion.1")]
    assert device_ops(data) == wanted


def test_the_names_of_sampling_are_those_of_the_sampler_s_jitted_functions():
    """A function under another name would count as "other"."""
    functions = [
        f
        for path in Path(decode.__file__).parent.glob("*.py")
        for f in ast.walk(ast.parse(path.read_text()))
        if isinstance(f, ast.FunctionDef)
    ]
    jitted = {f.name for f in functions if any("jax.jit" in ast.unparse(d) for d in f.decorator_list)}
    by_hand = {engine.prefill_jit.__name__, "outer", "layer"}  # the handover jits the last two where it is called
    assert {"generate", "prepare", "decode_until"} <= jitted
    assert jitted | by_hand == set(SAMPLING) <= {f.name for f in functions} | {"prefill"}


@pytest.mark.parametrize("steps", [(3,), (3, 2), (0, 1), (1, 2, 3), (2, 5), (5, 6)])
def test_steps_that_are_no_range_are_refused(steps):
    with pytest.raises(UserError, match="report.profile"):
        build(small_config(report__profile=steps, train__steps=4))
