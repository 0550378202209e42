import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.report import metrics, panels, plots
from rl_likelihood.report.page.__main__ import main as page_main
from rl_likelihood.runtime import run_files


def write_run(workdir, steps, offset=0.0, evals=(0, 5, 10)):
    """A run whose every number is known; step 3's perplexity was not finite."""
    with metrics.MetricsWriter(workdir, steps) as writer:
        for step in range(1, steps + 1):
            ppl = np.nan if step == 3 else 5.0 - 0.1 * step
            row = {"reward/mean": step + offset, "answer/perplexity": ppl, "chain/length": 2.0 * step}
            writer.metrics(step, row)
        for step in evals:
            row = {"greedy_success": 0.05 * step, "perplexity": 4.0, "chain_length": 9.0}
            writer.eval(step, {"stage": f"step {step}", **row})
    return workdir


def drawn(ax, gid):
    return [line.get_xydata() for line in ax.lines if line.get_gid() == gid]


def test_the_numbers_drawn_are_those_of_the_files(tmp_path):
    fig = plots.figure({"a": write_run(tmp_path / "a", 10), "b": write_run(tmp_path / "b", 10, offset=5.0)})
    reward, success, perplexity, length = fig.axes
    steps = np.arange(1, 11)
    for line, offset in zip(drawn(reward, "mean"), (0.0, 5.0), strict=True):
        np.testing.assert_array_equal(line, np.stack([steps, steps + offset], 1))
    np.testing.assert_allclose(drawn(success, "held-out")[0], [[0, 0.0], [5, 0.25], [10, 0.5]])
    values = 5.0 - 0.1 * steps
    values[2] = np.nan  # a gap, not a zero
    np.testing.assert_allclose(drawn(perplexity, "mean")[0], np.stack([steps, values], 1))
    np.testing.assert_array_equal(drawn(perplexity, "held-out")[0], [[0, 4.0], [5, 4.0], [10, 4.0]])
    np.testing.assert_array_equal(drawn(length, "mean")[0], np.stack([steps, 2 * steps], 1))
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["a", "b"]


def test_rewards_of_different_scales_have_panels_of_their_own(tmp_path):
    runs = {name: write_run(tmp_path / name, 3, offset=len(name)) for name in ("prob", "log_prob", "b")}
    for name, reward in (("prob", "prob"), ("log_prob", "log_prob"), ("b", "prob")):
        (runs[name] / "config.json").write_text(json.dumps({"reward.name": reward}))
    one, other, success, perplexity, length, unused = plots.figure(runs).axes
    assert [ax.get_title(loc="left") for ax in (one, other)] == [
        "Reward in training: prob",
        "Reward in training: log_prob",
    ]
    assert [[line[0, 1] for line in drawn(ax, "mean")] for ax in (one, other)] == [[5.0, 2.0], [9.0]]
    assert [len(drawn(ax, "mean")) for ax in (success, perplexity, length)] == [0, 3, 3]
    assert not unused.get_visible() and perplexity.get_xlabel() == length.get_xlabel() == "step (updates)"


def test_long_runs_show_each_step_faintly_and_the_mean_of_a_window(tmp_path):
    reward = plots.figure({"a": write_run(tmp_path / "a", 100)}).axes[0]
    steps = np.arange(1.0, 101.0)
    np.testing.assert_array_equal(drawn(reward, "each step")[0], np.stack([steps, steps], 1))
    assert plots.window(100) == 5
    np.testing.assert_allclose(drawn(reward, "mean")[0][2:-2, 1], steps[2:-2])  # a straight line is its own mean
    assert drawn(reward, "mean")[0][0, 1] == 2.0  # the mean of 1, 2, 3


def test_a_short_run_can_stand_beside_a_long_one(tmp_path):
    runs = {"long": write_run(tmp_path / "a", 200), "short": write_run(tmp_path / "b", 2, evals=())}
    assert [len(xy) for xy in drawn(plots.figure(runs).axes[0], "mean")] == [200, 2]


def test_means_leave_gaps_out():
    np.testing.assert_allclose(plots.smooth(np.array([1.0, np.nan, 3.0, 5.0]), 3), [1.0, 2.0, 4.0, 4.0])
    assert np.isnan(plots.smooth(np.full(4, np.nan), 3)).all()


def test_a_step_evaluated_twice_counts_once():
    rows = [{"step": 2, "x": 1.0}, {"step": 1, "x": None}, {"step": 2, "x": 3.0}, {"step": 4, "y": 0.0}]
    steps, values = plots.series(rows, "x")
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(values, [np.nan, 3.0])


def test_files_are_a_png_and_an_svg_of_sensible_size(tmp_path):
    png, svg = plots.curves({"a": write_run(tmp_path / "a", 10)}, tmp_path / "out" / "deep")
    content = png.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 1200 <= width <= 2400 and 800 <= height <= 1600
    assert 20_000 < len(content) < 500_000
    assert "<svg" in svg.read_text()


def test_a_run_without_evaluations_says_what_was_not_measured(tmp_path):
    fig = plots.figure({"a": write_run(tmp_path / "a", 3, evals=())})
    assert [t.get_text() for t in fig.axes[1].texts] == ["not measured"]
    assert not fig.axes[0].texts


def test_names_tell_folders_apart(tmp_path):
    paths = [str(tmp_path / p) for p in ("s1/jepo", "s2/jepo", "s2/prob", "s2/prob")]
    assert list(plots.names_of(paths)) == ["s1/jepo", "s2/jepo", "s2/prob"]
    assert list(plots.names_of(paths[1:])) == ["jepo", "prob"]


@pytest.mark.parametrize(
    "prepare, message",
    [
        (lambda d: d.mkdir(), "has no metrics.jsonl"),
        (lambda d: (d.mkdir(), (d / "metrics.jsonl").write_text('{"step": 1}\nx\n')), "metrics.jsonl:2: not a JSON"),
        (lambda d: (write_run(d, 2), (d / "config.json").write_text("[]")), "config.json: not JSON, or not an object"),
    ],
)
def test_bad_folders_are_one_sentence(tmp_path, capsys, prepare, message):
    prepare(tmp_path / "run")
    assert plots.main([str(tmp_path / "run"), f"--out={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("main", [plots.main, page_main])
@pytest.mark.parametrize(
    "file, name, value",
    [("metrics.jsonl", "reward/mean", "high"), ("eval.jsonl", "greedy_success", "0.5"), ("eval.jsonl", "pass@8", [1])],
)
def test_a_text_in_place_of_a_number_is_one_sentence_with_file_and_line(tmp_path, capsys, main, file, name, value):
    write_run(tmp_path / "run", 2)
    with (tmp_path / "run" / file).open("a") as f:
        f.write(json.dumps({"step": 9, "stage": "step 9", "note": "of mine", name: value}) + "\n")
    lines = len((tmp_path / "run" / file).read_text().splitlines())
    assert main([str(tmp_path / "run"), f"--out={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    words = f"error: {tmp_path}/run/{file}:{lines}: {name} is {value!r}; it must be a number"
    assert err.startswith(words) and err.count("\n") == 1


@pytest.mark.parametrize("main", [plots.main, page_main])
def test_an_empty_out_is_refused(tmp_path, capsys, monkeypatch, main):
    write_run(tmp_path / "run", 2, evals=())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["run", "--out="])
    assert end.value.code == 2 and "argument --out: it is empty; name a path" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_out_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plots.main([str(write_run(tmp_path / "a", 2)), "--out=~/out"]) == 0
    assert (tmp_path / "out" / "curves.png").exists()


def test_an_out_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        plots.curves({"a": write_run(tmp_path / "a", 2)}, tmp_path / "out")


def test_the_command(tmp_path):
    write_run(tmp_path / "a", 3)
    args = [sys.executable, "-m", "rl_likelihood.report.plots", str(tmp_path / "a"), f"--out={tmp_path / 'out'}"]
    out = subprocess.run(args, capture_output=True, text=True, check=True)
    assert out.stdout.split() == [str(tmp_path / "out" / f"curves.{x}") for x in ("png", "svg")]


def test_an_evaluation_made_later_moves_no_figure(tmp_path):
    write_run(tmp_path / "a", 10)
    run_files.append(tmp_path / "a" / run_files.EVAL, {"step": 10, "greedy_success": 0.99})
    assert [row["greedy_success"] for row in plots.load(tmp_path / "a")["heldout"]] == [0.0, 0.25, 0.5]


# ------------------------------------------------------------------------------------------- every number is visible


def visible(ax, kind):
    """Points of lines that have a marker."""
    return [line.get_xydata().tolist() for line in ax.lines if line.get_gid() == kind and line.get_marker() != "None"]


def test_a_single_step_and_a_step_between_gaps_are_dots(tmp_path):
    single = plots.figure({"a": write_run(tmp_path / "a", 1, evals=())}).axes[0]
    assert visible(single, "alone") == [[[1.0, 1.0]]]
    with metrics.MetricsWriter(tmp_path / "b", 5) as writer:
        for step, value in enumerate([1.0, np.nan, 3.0, np.nan, 5.0], 1):
            writer.metrics(step, {"reward/mean": value})
    assert visible(plots.figure({"b": tmp_path / "b"}).axes[0], "alone") == [[[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]]]
    whole = plots.figure({"c": write_run(tmp_path / "c", 5)}).axes[0]
    assert visible(whole, "alone") == []


def test_points_at_the_edge_are_whole_and_equal_points_stand_side_by_side(tmp_path):
    runs = {name: write_run(tmp_path / name, 10) for name in "abc"}
    success = plots.figure(runs).axes[1]
    points = [line for line in success.lines if line.get_gid() == "held-out"]
    assert len(points) == 3 and not any(line.get_clip_on() for line in points)
    assert len({(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in points}) == 3
    success.figure.savefig(io.BytesIO(), format="png")
    at = [line.get_transform().transform(line.get_xydata()[-1])[0] for line in points]
    assert at[0] + 2 < at[1] < at[2] - 2, "pixels"
    low, high = success.get_xlim()
    assert low < 0 and high > 10


@pytest.mark.parametrize("panel", panels.RUNS, ids=lambda p: p.metric.name)
def test_an_axis_of_zeros_begins_at_zero(tmp_path, panel):
    with metrics.MetricsWriter(tmp_path / "a", 3) as writer:
        for step in range(1, 4):
            writer.metrics(step, {p.train: 0.0 for p in panels.RUNS if p.train})
            writer.eval(step, {"stage": "x", **{p.heldout: 0.0 for p in panels.RUNS if p.heldout}})
    low, high = plots.figure({"a": tmp_path / "a"}).axes[panels.RUNS.index(panel)].get_ylim()
    assert low == 0 and 0.05 < high <= 1


def test_numbers_of_sampled_tokens_are_absent_where_none_were_sampled(tmp_path):
    with metrics.MetricsWriter(tmp_path, 1) as writer:
        of_samples = ("policy/entropy", "ratio/max", "corr/token_entropy")
        writer.metrics(1, dict.fromkeys(of_samples, 0.0) | {"answer/perplexity": 2.0})
    assert plots.load(tmp_path)["train"][0]["policy/entropy"] == 0
    (tmp_path / "config.json").write_text('{"reward.name": "sft"}')
    assert plots.load(tmp_path)["train"] == [{"step": 1, "answer/perplexity": 2.0}]
