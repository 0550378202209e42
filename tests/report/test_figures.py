"""Tables and figures of a grid: means over seeds, what is missing, published numbers beside, and what is drawn."""

import csv
import io

import numpy as np
import pytest

from rl_likelihood.report import figures, metrics, plots, table
from rl_likelihood.report.table import Run
from rl_likelihood.shapes import UserError


def write_run(workdir, final, first=None, steps=4, done=True, samples=0, lag=0, seed=0):
    """A run whose numbers are known: `final` and `first` are evaluations, curves are straight lines."""
    rng = np.random.default_rng(seed)
    with metrics.MetricsWriter(workdir, steps) as writer:
        writer.eval(0, {"stage": "untouched", **(first or {"greedy_success": 0.25, "greedy_success_se": 0.04})})
        for step in range(1, steps + 1):
            row = {"reward/mean": step + seed, "answer/perplexity": 4.0, "chain/length": step + seed, "queue/lag": lag}
            writer.metrics(step, row | {"ratio/max": 1.5, "ratio/ess": 0.9})
            for i in range(samples):
                n = 1 + i % 3
                writer.sample(step, sample(f"q{step}", rng.normal(), n, f"{'word ' * (i + 1)}"))
        if done:
            writer.eval(steps, {"stage": f"after {steps} steps", **final})
            writer.status("done", steps)
        else:
            writer.status("running", steps)
    return workdir


def sample(name, log_prob, answer_tokens, chain):
    """A line of samples.jsonl."""
    return {
        "id": name, "prompt": "2+2?", "chain": chain, "forced": "", "sampled_answer": "", "reference_answer": "4",
        "answer_tokens": ["4"] * answer_tokens, "answer_logp": [log_prob] * answer_tokens,
        "scored": [1] * answer_tokens, "reward": log_prob, "reward/log_prob": log_prob,
        "reward/prob": float(np.exp(log_prob)), "advantage": 0.0, "truncated": False, "version": 0,
    }  # fmt: skip


def evaluation(greedy, perplexity):
    return {"greedy_success": greedy, "greedy_success_se": 0.02, "perplexity": perplexity, "chain_length": 10.0}


@pytest.fixture
def runs(tmp_path):
    """Two rewards on two data sets with two seeds; one run of `prob` on proofs has not finished."""
    out = []
    for data in ("math", "proofs"):
        for reward, level in (("log_prob", 0.4), ("prob", 0.6)):
            for seed in (0, 1):
                workdir = tmp_path / f"{data}{reward}{seed}"
                unfinished = (data, reward, seed) == ("proofs", "prob", 1)
                final = evaluation(level + 0.1 * seed, 2.0 + seed)
                write_run(workdir, final, done=not unfinished, samples=6, seed=seed)
                out.append(Run({"data": data, "reward": reward, "seed": str(seed)}, workdir))
    return out


def test_a_cell_is_mean_deviation_and_error(runs):
    math, proofs = table.blocks(runs)
    assert math.title == "data math" and [line.name for line in math.lines] == ["untouched", "log_prob", "prob"]
    cell = math.lines[1].cells["greedy_success"]
    assert (cell.mean, cell.sd, cell.se, cell.runs) == pytest.approx((45.0, 10 / np.sqrt(2), 2.0, 2))
    assert math.lines[1].cells["perplexity"].mean == 2.5 and math.lines[1].cells["perplexity"].se is None
    alone = proofs.lines[2]
    assert (alone.done, alone.runs) == (1, 2) and alone.cells["greedy_success"].sd is None
    assert math.lines[0].cells["greedy_success"].mean == 25.0 and math.lines[0].cells["greedy_success"].runs == 2


def test_the_text_says_what_is_missing(runs, tmp_path):
    new = Run({"data": "math", "reward": "jepo", "seed": "0"}, tmp_path / "never started")
    text = table.grid_text(table.blocks([*runs, new]))
    lines = text.splitlines()
    (log_prob,) = (line for line in lines[:6] if line.startswith("log_prob"))
    assert "45.0 ± 7.1 (2.0)" in log_prob and log_prob.endswith("2/2")
    (jepo,) = (line for line in lines if line.startswith("jepo"))
    assert jepo.split() == ["jepo", "-", "-", "-", "0/1"]
    assert "perplexity, no chain" not in text, "no run measured it"
    assert lines[-1] == table.CAPTION


def test_published_numbers_stand_beside(runs):
    paper = [
        {"labels": {"data": "math", "reward": "prob"}, "greedy_success": (44.19, 0.57), "perplexity": 7.14},
        {"labels": {"reward": "log_prob"}, "perplexity": 2.21},
    ]
    text = table.grid_markdown(table.blocks(runs), paper)
    math, proofs = text.split("### data proofs")
    assert "65.0 ± 7.1 (2.0) [44.19 ± 0.57]" in math and "2.50 ± 0.71 [7.14]" in math
    assert "44.19" not in proofs and proofs.count("[2.21]") == 1 and "as published" in text


def test_csv_has_every_number(runs):
    paper = [{"labels": {"data": "math", "reward": "prob"}, "perplexity": (7.14, 0.2)}]
    rows = list(csv.DictReader(io.StringIO(table.grid_csv(table.blocks(runs), paper))))
    assert len(rows) == 2 * 3 * len(table.GRID_COLUMNS)
    (row,) = (r for r in rows if (r["data"], r["reward"], r["metric"]) == ("math", "prob", "perplexity"))
    assert (row["mean"], row["sd"], row["se"], row["done"]) == ("2.5", "0.707107", "", "2")
    assert row["published"] == "7.14, 0.2"


def test_latex_has_balanced_rows_and_no_bare_signs(runs):
    text = table.grid_latex(table.blocks(runs))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 * 4 and len({row.count("&") - row.count(r"\&") for row in rows}) == 1
    assert r"log\_prob" in text and r"45.0 $\pm$ 7.1" in text and r"greedy success \%" in text and "±" not in text


def test_rows_are_a_label_or_a_field_or_refused(tmp_path):
    run = Run({"reward.name": "prob", "seed": "0"}, tmp_path)
    assert table.row_label([run], "reward") == "reward.name"
    with pytest.raises(UserError, match="no point says its 'method'; the rows must be one of reward.name, seed"):
        table.row_label([run], "method")


def test_one_run_is_a_line_for_each_evaluation(tmp_path):
    write_run(tmp_path / "a", evaluation(0.5, 2.0))
    block = table.stages(Run({"run": "a"}, tmp_path / "a"))
    assert [line.name for line in block.lines] == ["untouched", "after 4 steps"] and block.rows == "stage"


# ------------------------------------------------------------------------------------------- figures


def test_curves_are_means_over_seeds(runs):
    fig = figures.grid_figures(runs)["curves_math"]
    titles = [ax.get_title("left") for ax in fig.axes if ax.get_title("left")]
    assert [title.split()[0] for title in titles] == ["Greedy", "Perplexity", "Length"], "what the runs have"
    length = fig.axes[titles.index("Length of the chain of thought, tokens")]
    lines = [line.get_xydata() for line in length.lines if line.get_gid() == "mean"]
    np.testing.assert_allclose(lines[0], [[s, s + 0.5] for s in range(1, 5)])  # seeds 0 and 1
    band = length.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (1.0, 5.0)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["log_prob", "prob"]


def test_the_evaluation_before_the_first_step_is_made_once_a_seed_and_begins_every_line(runs):
    for run in runs:
        if run.labels["reward"] == "prob":  # as with train.eval_first=False
            path = run.workdir / metrics.EVAL
            path.write_text("".join(line for line in path.read_text().splitlines(True) if '"step": 0' not in line))
    greedy = figures.grid_figures(runs)["curves_math"].axes[0]
    curves = [line.get_xydata().tolist() for line in greedy.lines if line.get_linestyle() != "None"]
    assert len(curves) == 2 and curves[0][0] == curves[1][0] == [0.0, 0.25]
    assert [line.runs for line in table.blocks(runs)[0].lines] == [2, 2, 2]


def test_a_grid_has_the_figures_that_its_runs_can_give(runs, tmp_path):
    drawn = figures.grid_figures(runs)
    names = {f"{kind}_{data}" for kind in ("curves", "correlations", "answer_length") for data in ("math", "proofs")}
    assert set(drawn) == {"trade_off", *names}
    grouped = [Run({**run.labels, "group": g}, run.workdir) for g, run in zip(["4", "32"] * 4, runs, strict=True)]
    lagging = Run({"data": "math", "reward": "jepo", "seed": "0"}, write_run(tmp_path / "lag", {}, lag=1))
    more = set(figures.grid_figures([*grouped, lagging]))
    assert "group_size" in more and any(name.startswith("tails") for name in more)
    paths = plots.save({"trade_off": drawn["trade_off"]}, tmp_path / "out")
    assert [p.name for p in paths] == ["trade_off.png", "trade_off.svg"] and all(p.stat().st_size > 5000 for p in paths)


def test_a_grid_that_has_not_begun_has_no_figures(tmp_path):
    assert figures.grid_figures([Run({"reward": "prob", "seed": "0"}, tmp_path / "none")]) == {}


def test_correlations_over_all_and_within_groups_can_have_other_signs():
    """Simpson's paradox: within each group y falls with x, over the groups it rises."""
    x = np.asarray([1.0, 2.0, 3.0, 11.0, 12.0, 13.0])
    y = np.asarray([3.0, 2.0, 1.0, 13.0, 12.0, 11.0])
    columns, group = np.stack([x, y], 1), np.asarray([0, 0, 0, 1, 1, 1])
    assert np.corrcoef(x, y)[0, 1] > 0.9
    assert figures.correlation(columns)[0, 1] == pytest.approx(np.corrcoef(x, y)[0, 1])
    np.testing.assert_allclose(figures.correlation(columns, group), [[1, -1], [-1, 1]])


def test_what_does_not_vary_has_no_correlation():
    columns = np.asarray([[1.0, 0.1], [2.0, 0.1], [1.0, 0.3], [2.0, 0.5]])
    group = np.asarray([0, 0, 1, 1])
    assert np.isnan(figures.correlation(columns[:2])[0, 1])
    assert figures.correlation(columns, group)[0, 1] == pytest.approx(1.0), "the group without one is left out"


def test_chain_length_is_in_tokens_where_they_are_known():
    assert figures.chain_length({"chain": "two words"}) == 2
    assert figures.chain_length({"chain": "two words", "chain_tokens": 7}) == 7
