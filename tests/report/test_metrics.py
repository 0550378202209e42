import json
import math
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.report import metrics
from rl_likelihood.report.tracking import Board, Tracker
from rl_likelihood.runtime import run_files


def lines(path):
    return path.read_text().splitlines()


def test_a_row_is_one_line_of_json_whatever_its_numbers_are(tmp_path):
    path = tmp_path / "m.jsonl"
    row = {"step": 3, "a": jnp.float32(0.1), "b": np.int64(4), "c": np.ones((2, 2)), "d": "x\ny", "e": True}
    run_files.append(path, row)
    assert lines(path) == ['{"step": 3, "a": 0.1, "b": 4, "c": [[1.0, 1.0], [1.0, 1.0]], "d": "x\\ny", "e": true}']


def test_float32_comes_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=200).astype(np.float32) * np.float32(10.0) ** np.arange(-30, 30, 0.3)
    values = values.astype(np.float32)
    run_files.append(tmp_path / "m.jsonl", {"step": 0, "v": values, "w": jnp.bfloat16(0.1)})
    row = run_files.read(tmp_path / "m.jsonl")[0]
    np.testing.assert_array_equal(np.asarray(row["v"], np.float32), values)
    assert jnp.bfloat16(row["w"]) == jnp.bfloat16(0.1)


def test_non_finite_numbers_become_null_and_are_counted(tmp_path):
    path = tmp_path / "m.jsonl"
    bad = {"step": 1, "a": math.nan, "b": jnp.float32(-math.inf), "c": [1.0, math.inf], "d": 2.0}
    written = run_files.append(path, bad, {"step": 2, "a": 1.0})
    first, second = run_files.read(path)
    assert [first, second] == written
    assert first == {"step": 1, "a": None, "b": None, "c": [1.0, None], "d": 2.0, "metrics/non_finite": 3}
    assert "metrics/non_finite" not in second


def test_resume_leaves_every_step_once(tmp_path):
    with metrics.MetricsWriter(tmp_path, steps=9) as writer:
        for step in range(1, 8):
            writer.metrics(step, {"reward/mean": float(step)})
            writer.samples(step, [{"prompt": f"question {step}"}])
        writer.eval(4, {"greedy_success": 0.5})
        writer.eval(6, {"greedy_success": 0.6})
    with open(tmp_path / run_files.METRICS, "a") as f:
        f.write('{"step": 8, "rewa')  # where the process was killed
    with metrics.MetricsWriter(tmp_path, steps=9, resume_step=5) as writer:
        for step in range(6, 10):
            writer.metrics(step, {"reward/mean": float(step)})
            writer.samples(step, [{"prompt": f"question {step}"}])
    rows = run_files.read(tmp_path / run_files.METRICS)
    assert rows == [{"step": s, "reward/mean": float(s)} for s in range(1, 10)]
    assert [r["step"] for r in run_files.read(tmp_path / run_files.SAMPLES)] == list(range(1, 10))
    assert [r["step"] for r in run_files.read(tmp_path / run_files.EVAL)] == [4]


def test_a_run_that_falls_back_to_an_older_checkpoint_rewinds_further(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, steps=9)
    for step in range(1, 8):
        writer.metrics(step, {"loss": 1.0})
    writer = metrics.MetricsWriter(tmp_path, steps=9, resume_step=6)
    writer.rewind(4)
    assert [r["step"] for r in run_files.read(tmp_path / run_files.METRICS)] == [1, 2, 3, 4]


def test_a_new_run_in_a_folder_whose_run_never_saved_starts_its_files_anew(tmp_path):
    run_files.append(tmp_path / run_files.METRICS, {"step": 0, "loss": 1.0})
    run_files.append(tmp_path / run_files.METRICS, {"step": 1, "loss": 1.0})
    metrics.MetricsWriter(tmp_path, steps=5)
    assert [r["step"] for r in run_files.read(tmp_path / run_files.METRICS)] == [0]


@pytest.mark.parametrize("half", [b'{"step": 2, "a', b"\x00\x00\x00", b'{"step": 2}'])
def test_appending_after_a_crash_never_joins_two_rows(tmp_path, half):
    path = tmp_path / "eval.jsonl"
    path.write_bytes(b'{"step": 1}\n' + half)
    complete = [{"step": 2}] if half.endswith(b"}") else []
    assert run_files.read(path) == [{"step": 1}, *complete]
    run_files.append(path, {"step": 3})
    assert run_files.read(path) == [{"step": 1}, *complete, {"step": 3}]
    assert path.read_bytes().count(b"\n") == 2 + len(complete)


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"m\.jsonl:2: not a JSON object"):
        run_files.read(path)
    with pytest.raises(UserError, match=r"m\.jsonl:2: not a JSON object"):
        run_files.truncate(path, 1)
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        run_files.read(tmp_path / "none.jsonl")


def test_status_is_replaced_whole(tmp_path, capsys):
    assert run_files.read_status(tmp_path) is None
    writer = metrics.MetricsWriter(tmp_path, steps=7)
    writer.status("running", 0)
    writer.status("failed", 3, error='a "quoted"\nsentence')
    expected = {"state": "failed", "step": 3, "steps": 7, "error": 'a "quoted"\nsentence'}
    assert run_files.read_status(tmp_path) == expected
    assert len(lines(tmp_path / "STATUS")) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["STATUS"]
    unknown = {"state": "interrupted", "step": 0, "steps": 0, "error": ""}
    for text in ("", "[]", "{"):
        (tmp_path / "STATUS").write_text(text)
        assert run_files.read_status(tmp_path) == unknown and "warning: " in capsys.readouterr().err
    (tmp_path / "STATUS").write_text('{"state": "done", "step": null, "host": "a"}')  # of another version
    assert run_files.read_status(tmp_path) == unknown | {"state": "done"}


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .* choose another folder"):
        metrics.MetricsWriter(tmp_path / "file", steps=1)
    writer = metrics.MetricsWriter(tmp_path / "run", steps=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # the nearest a test gets to a full disk
    try:
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written"):
            writer.metrics(1, {"a long enough name": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_wandb_is_not_imported_when_off(tmp_path):
    code = (
        "import sys\nfrom rl_likelihood.report.metrics import MetricsWriter\n"
        f"w = MetricsWriter({str(tmp_path)!r}, 1)\nw.metrics(1, {{'a': 1}})\nw.close()\nprint('wandb' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


# A package of that name that does what the real one may do on a bad day, in front of the real one.
BROKEN = {
    "missing": "raise ImportError('no module named wandb')",
    "refuses": "def init(**kw): raise RuntimeError('api_key not configured\\n(no-tty)')",
    "breaks": "class R:\n    def log(self, *a, **k): raise OSError('disk')\n    finish = log\ninit = lambda **kw: R()",
}


@pytest.mark.parametrize(
    ("how", "said"),
    [("missing", "did not start (no module"), ("refuses", "(api_key not configured (no-tty))"), ("breaks", "(disk)")],
)
def test_a_tracker_that_is_missing_or_breaks_never_stops_a_run(tmp_path, monkeypatch, capsys, how, said):
    (tmp_path / "wandb.py").write_text(BROKEN[how])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    tracker = Tracker(tmp_path, "online", "p", {})
    with metrics.MetricsWriter(tmp_path / "run", 2, tracker=tracker) as writer:
        writer.metrics(1, {"a": 1.0})
        writer.metrics(2, {"a": 2.0})
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    out = capsys.readouterr().out
    assert out.count("warning: wandb") == 1 and said in out
    assert [row["a"] for row in run_files.read(tmp_path / "run" / run_files.METRICS)] == [1.0, 2.0]


def test_wandb_offline_writes_a_folder_of_the_same_run_over_a_resume(tmp_path):
    """In a process of its own: wandb leaves a service running, and threads."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom rl_likelihood.report.metrics import MetricsWriter\n"
        "from rl_likelihood.report.tracking import Tracker\n"
        "tracker = Tracker(Path(sys.argv[1]), 'offline', 'p', {'optim.lr': 0.25})\n"
        "with MetricsWriter(sys.argv[1], 2, int(sys.argv[2]), tracker) as writer:\n"
        "    writer.metrics(int(sys.argv[2]) + 1, {'reward/mean': 0.75})\n"
    )
    ids = []
    for resume in ("0", "1"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), resume], capture_output=True, text=True)
        assert done.returncode == 0 and "warning: wandb" not in done.stdout, done.stdout + done.stderr
        ids.append((tmp_path / "wandb_id").read_text().strip())
    assert ids[0] == ids[1]
    assert [r["step"] for r in run_files.read(tmp_path / run_files.METRICS)] == [1, 2]
    copies = list((tmp_path / "wandb").glob(f"offline-run-*-{ids[0]}/run-{ids[0]}.wandb"))
    assert copies and all(b"reward/mean" in p.read_bytes() and b"optim.lr" in p.read_bytes() for p in copies)


def test_console_lines_are_aligned_and_in_order():
    first = {"reward/mean": jnp.float32(-12.5), "answer/perplexity": 31.5, "chain/length": 9, "tokens_per_second": 85.2}
    first["queue/lag"] = 0
    later = {"reward/mean": -0.031, "answer/perplexity": 1.0274, "chain/length": 148.25, "tokens_per_second": 1.23e6}
    later["queue/lag"] = 2
    a = metrics.line(1, 500, first | {"reward/exact_match": 0.07}, 4000)
    b = metrics.line(250, 500, later | {"reward/exact_match": 0.07, "reward/math": 0.412}, 59.6)
    assert a == (
        "step   1/500  reward   -12.50  success   7%  ppl  31.50  length    9.0     85 tok/s  staleness 0   1h06m left"
    )
    assert b == (
        "step 250/500  reward   -0.031  success  41%  ppl   1.03  length  148.2  1.23M tok/s  staleness 2   1m00s left"
    )
    assert "success" not in metrics.line(1, 500, first | {"greedy_success": 0.5}, 1), "an evaluation is not the step's"
    assert "0.04 tok/s" in metrics.line(1, 500, {"tokens_per_second": 0.04}, 1)
    assert "left" not in metrics.line(1, 500, first, None), "not known before the second step"
    assert "left" not in metrics.line(500, 500, first, 0.0), "an evaluation follows"
    for value, words in ((9994, "9994"), (999_600, "1M"), (1e9, "1G"), (9.996e11, "1e+12"), (1e30, "1e+30")):
        assert f"ppl {words:>6}" in metrics.line(1, 500, {"answer/perplexity": value}, 1)
    assert "ppl    nan" in metrics.line(1, 500, {"answer/perplexity": math.inf}, 1)


def test_durations():
    assert [metrics.duration(s) for s in (0.4, 59, 60, 3599.6, 3 * 86400 + 4 * 3600, -5)] == [
        "0s",
        "59s",
        "1m00s",
        "1h00m",
        "3d04h",
        "0s",
    ]


def test_json_files_hold_no_nan_word(tmp_path):
    run_files.append(tmp_path / "m.jsonl", {"step": 1, "x": [math.nan]})
    json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_tensorboard_s_files_have_the_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    with metrics.MetricsWriter(tmp_path, 5, 0, Tracker(tmp_path, "off", "p", {}, Board(tmp_path, 0))) as writer:
        writer.metrics(1, {"reward/mean": 1.5})
        writer.eval(2, {"greedy_success": 0.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, values = file.read_bytes(), {}
    while data:  # records: a length of eight bytes, its checksum of four, the event, its checksum of four
        size = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        values |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
    assert values == {(1, "reward/mean"): 1.5, (2, "eval/greedy_success"): 0.25}


def test_a_full_disk_ends_tensorboard_s_copy_and_not_the_run(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    tracker = Tracker(tmp_path, "off", "p", {}, Board(tmp_path, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        for step in range(3):
            tracker.log(step, {f"number/{i}": 1.0 for i in range(30)})
        with pytest.raises(UserError, match="tensorboard/events.*: cannot be written"):
            Board(tmp_path / "other", 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    tracker.close()
    assert capsys.readouterr().out.count("warning: TensorBoard failed") == 1
