"""Figures of a grid: what is drawn, over seeds and within groups, and the last numbers."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from rl_likelihood.report import chain_figures, curve_figures, figures, panels, plots, style, table, table_text
from rl_likelihood.report.metric_table import metric
from rl_likelihood.report.table import Run
from rl_likelihood.runtime import run_files
from tests.report.grids import sample, sft_run, text_runs, write_run


@pytest.mark.parametrize("largest", [12.0, 900.0, 1e7, 1e12, 1e40])
def test_a_logarithmic_axis_has_a_few_labels_however_wide_it_is(largest):
    fig = Figure(figsize=(4, 3))
    ax = fig.subplots()
    ax.plot([0, 1], [1.0, largest])
    style.fit_scale(ax, metric("perplexity"))
    fig.canvas.draw()
    low, high = ax.get_ylim()
    labels = [t.get_text() for t in ax.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert 3 <= len(labels) <= 8 and "1" in labels and all(labels) and not any("e+" in text for text in labels)


def test_curves_are_means_over_seeds(runs):
    fig = figures.grid_figures(runs)["curves_math"]
    titles = [ax.get_title("left") for ax in fig.axes if ax.get_title("left")]
    assert [title.split()[0] for title in titles] == ["Greedy", "Perplexity", "Chain"], "what the runs have"
    length = fig.axes[titles.index("Chain length with tags, tokens")]
    lines = [line.get_xydata() for line in length.lines if line.get_gid() == "mean"]
    np.testing.assert_allclose(lines[0], [[s, s + 0.5] for s in range(1, 5)])  # seeds 0 and 1
    held_out = [line for line in fig.axes[0].lines if line.get_gid() == "held-out"]
    assert [line.get_color() for line in held_out] == [style.look_of(i)["color"] for i in (0, 1)]
    np.testing.assert_allclose([line.get_xydata()[-1] for line in held_out], [[4, 0.45], [4, 0.65]])
    (segments,) = {tuple(c.get_segments()[-1][:, 1].round(6)) for c in fig.axes[0].collections[:1]}
    assert segments == (0.4, 0.5), "one standard error of two seeds"
    (untouched,) = (line for line in fig.axes[0].lines if line.get_gid() == "untouched")
    assert untouched.get_ydata()[0] == 0.25
    assert [t.get_text() for t in fig.axes[-1].get_legend().get_texts()] == ["log_prob", "prob", "untouched"]
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()][0] == "0%"


def test_the_evaluation_before_the_first_step_is_made_once_a_seed_and_begins_every_line(runs):
    for run in runs:
        if run.labels["reward"] == "prob":  # as with train.eval_first=False
            path = run.workdir / run_files.EVAL
            path.write_text("".join(line for line in path.read_text().splitlines(True) if '"step": 0' not in line))
    greedy = figures.grid_figures(runs)["curves_math"].axes[0]
    curves = [line.get_xydata().tolist() for line in greedy.lines if line.get_gid() == "held-out"]
    assert len(curves) == 2 and curves[0][0] == curves[1][0] == [0.0, 0.25]
    assert [line.runs for line in table.blocks(runs)[0].lines] == [2, 2, 2]


def test_a_grid_has_the_figures_that_its_runs_can_give(runs, tmp_path):
    drawn = figures.grid_figures(runs)
    names = {f"{kind}_{data}" for kind in ("curves", "correlations", "answer_length") for data in ("math", "proofs")}
    assert set(drawn) == {"summary", "trade_off", *names}
    lagging = Run({"data": "math", "reward": "jepo", "seed": "0"}, write_run(tmp_path / "lag", {}, lag=1))
    assert any(name.startswith("tails") for name in figures.grid_figures([*runs, lagging]))
    paths = plots.save({"trade_off": drawn["trade_off"]}, tmp_path / "out")
    assert [p.name for p in paths] == ["trade_off.png", "trade_off.svg"] and all(p.stat().st_size > 5000 for p in paths)


def test_perplexities_of_a_reference_after_each_kind_of_chain(tmp_path):
    fig = figures.grid_figures(text_runs(tmp_path))["references"]
    assert [ax.get_title("left") for ax in fig.axes] == ["by the trained model", "by the initial model"]
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["untouched", "r3", "sft"]
    points = lambda ax: [bars.lines[0].get_xydata().tolist() for bars in ax.containers]
    # own chain, no chain, another prompt's; sft is asked without a chain.
    assert points(fig.axes[0]) == [[[9, 0], [5, 1], [8, 2]], [[6, 1], [8, 2]], [[7, 1]]]
    assert points(fig.axes[1]) == [[[15, 1]], [[16, 1]], [[17, 1]]]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["own chain", "no chain", "another prompt's chain"]
    assert "sft: asked without a chain" in fig._supxlabel.get_text()
    one = figures.grid_figures(text_runs(tmp_path / "b")[2:])["references"]
    assert [ax.get_title("left") for ax in one.axes] == ["by the trained model"]


def test_a_grid_that_has_not_begun_has_no_figures(tmp_path):
    assert figures.grid_figures([Run({"reward": "prob", "seed": "0"}, tmp_path / "none")]) == {}


def test_correlations_over_all_and_within_groups_can_have_other_signs():
    """Simpson's paradox: within each group y falls with x, over the groups it rises."""
    x = np.asarray([1.0, 2.0, 3.0, 11.0, 12.0, 13.0])
    y = np.asarray([3.0, 2.0, 1.0, 13.0, 12.0, 11.0])
    columns, group = np.stack([x, y], 1), np.asarray([0, 0, 0, 1, 1, 1])
    assert np.corrcoef(x, y)[0, 1] > 0.9
    assert chain_figures.correlation(columns)[0, 1] == pytest.approx(np.corrcoef(x, y)[0, 1])
    np.testing.assert_allclose(chain_figures.correlation(columns, group), [[1, -1], [-1, 1]])


def test_what_does_not_vary_has_no_correlation():
    columns = np.asarray([[1.0, 0.1], [2.0, 0.1], [1.0, 0.3], [2.0, 0.5]])
    group = np.asarray([0, 0, 1, 1])
    assert np.isnan(chain_figures.correlation(columns[:2])[0, 1])
    assert chain_figures.correlation(columns, group)[0, 1] == pytest.approx(1.0), "the group without one is left out"


def test_chains_of_two_runs_are_two_groups_though_question_and_step_are_the_same():
    """In each run prob falls with the chain's length; pooled, the run with better and longer chains turns that."""
    runs = [
        [sample("q", level - 0.5 * i, 2, "word " * (length + i)) | {"step": 1} for i in range(3)]
        for level, length in ((-9.0, 1), (-1.0, 40))
    ]
    fig = chain_figures.correlations(runs)
    assert "6 chains of 2 runs, 2 groups" in fig._supxlabel.get_text()
    for ax in fig.axes:
        names = [label.get_text() for label in fig.axes[0].get_yticklabels()]
        values = ax.images[0].get_array()
        assert values[names.index("log_prob"), names.index("chain length")] == pytest.approx(-1.0)
        assert values[names.index("prob"), names.index("chain length")] < -0.9
    pooled = [[row for run in runs for row in run]]
    assert chain_figures.correlations(pooled).axes[0].images[0].get_array()[0, -1] > 0.9


def test_the_probability_of_a_long_answer_is_not_zero():
    rows = [sample("q", -90.0 - i, 60, "word " * (1 + i)) | {"step": 1, "reward/prob": 0.0} for i in range(3)]
    assert chain_figures.reward(rows[0], "prob") == pytest.approx(np.exp(-90.0))
    columns = np.asarray([[chain_figures.reward(row, "prob"), chain_figures.chain_length(row)] for row in rows])
    assert chain_figures.correlation(columns)[0, 1] < -0.9
    tiny = columns * [1e-160, 1.0]
    assert chain_figures.correlation(tiny)[0, 1] == pytest.approx(chain_figures.correlation(columns)[0, 1])
    left, right = chain_figures.answer_length([rows]).axes[:2]
    assert len(left.lines[0].get_ydata()) == 3 and left.get_yscale() == right.get_yscale() == "linear"


# ------------------------------------------------------------------------------------------- last numbers


def test_the_summary_has_each_mean_with_its_errors_and_the_untouched_model(runs, tmp_path):
    fig = figures.grid_figures([*runs, sft_run(tmp_path / "sft")])["summary"]
    greedy = fig.axes[0]
    assert [t.get_text() for t in greedy.get_yticklabels()] == ["log_prob", "prob", "sft"]
    of = lambda gid: [list(line.get_xdata()) for line in greedy.lines if line.get_gid() == gid]
    np.testing.assert_allclose(of("mean"), [[45], [65], [90]])
    assert of("untouched")[0][0] == 25.0
    np.testing.assert_allclose(of("seeds"), [[40, 50], [60, 70]])
    perplexity = fig.axes[1]
    bars = [list(line.get_xdata()) for line in perplexity.lines if line.get_gid() == "questions"]
    np.testing.assert_allclose(bars[:2], [[1.5, 3.5], [1.5, 3.5]])
    assert "sft: asked without a chain" in fig._supxlabel.get_text()


def test_a_reward_has_one_colour_in_every_figure():
    names = ["sft", "kl 0.01", "log_prob", "other"]
    looks = style.looks(names)
    assert (
        looks["sft"] == style.looks(["sft", "prob"])["sft"]
        and looks["log_prob"] == style.looks(["log_prob"])["log_prob"]
    )
    assert len({look["color"] for look in looks.values()}) == 4
    assert len({look["color"] for look in style.looks(style.NUMBERS).values()}) == len(style.NUMBERS)
    drawn = [style.look_of(i) for i in range(16)]
    assert len({(look["color"], look["marker"]) for look in drawn}) == 16, "the ninth has the first one's colour"


def test_success_against_perplexity_leaves_tables_without_both_out(runs):
    for run in runs:
        if run.labels["data"] == "proofs":
            path = run.workdir / run_files.EVAL
            path.write_text(path.read_text().replace("greedy_success", "unchecked"))
    fig = figures.grid_figures(runs)["trade_off"]
    assert [ax.get_title("left") for ax in fig.axes] == ["data math"]


def test_a_long_title_widens_no_column(runs):
    def widths(model):
        fig = figures.grid_figures([Run({**run.labels, "model": model}, run.workdir) for run in runs])["summary"]
        fig.savefig(io.BytesIO())  # lays it out
        return [ax.get_position().width for ax in fig.axes if ax.get_visible()]

    long = "of a very long name that is wider than one panel and half of it again"
    np.testing.assert_allclose(widths(long), widths("m"))


def test_transition_words_have_a_panel_where_there_are_some(tmp_path):
    for name, start in (("many", 5.0), ("few", 0.2)):
        first = {"greedy_success": 0.1, "transition_words": start}
        workdir = write_run(tmp_path / name, {"greedy_success": 0.2, "transition_words": start / 2}, first)
        fig = figures.grid_figures([Run({"reward": "token_entropy", "seed": "0"}, workdir)])["curves"]
        titles = [ax.get_title("left") for ax in fig.axes]
        assert any(title.startswith("Transition words") for title in titles) == (name == "many")


def test_chain_length_is_in_tokens_where_they_are_known():
    assert chain_figures.chain_length({"chain": "two words"}) == 2
    assert chain_figures.chain_length({"chain": "two words", "chain_tokens": 7}) == 7


def zero_runs(folder):
    """Two rewards that never answer right and whose perplexity and lengths are the same."""
    out = []
    for name in ("prob", "jepo"):
        final = {"greedy_success": 0.0, "sampled_success": 0.0, "perplexity": 2.0, "chain_length": 0.0, "questions": 24}
        exact = {"greedy_success": [0.0, 0.142], "sampled_success": [0.0, 0.142]}
        out.append(Run({"reward": name, "seed": "0"}, write_run(folder / name, final | {"ci95": exact}, final)))
    return out


def test_none_right_of_n_has_one_interval_in_tables_and_figures(tmp_path):
    runs = zero_runs(tmp_path)
    (block,) = table.blocks(runs)
    cell = block.lines[1].cell("greedy_success")
    assert (cell.low, cell.high, cell.se_questions) == pytest.approx((0, 14.2, 14.2 / 3.92))
    assert "0.0 (3.6)" in table_text.grid_text([block])
    greedy = figures.grid_figures(runs)["summary"].axes[0]
    assert [list(line.get_xdata()) for line in greedy.lines if line.get_gid() == "questions"] == [[0, 14.2]] * 2


def test_a_panel_of_zeros_begins_at_zero_and_its_points_are_whole(tmp_path):
    drawn = figures.grid_figures(zero_runs(tmp_path))
    length = drawn["summary"].axes[3]
    assert length.get_xlim() == (0, 1)
    assert not any(line.get_clip_on() for line in length.lines if line.get_gid() == "mean")
    assert drawn["trade_off"].axes[0].get_ylim() == (0, 10)
    curves = drawn["curves"]
    assert curves.axes[0].get_ylim()[0] == 0 and curves.axes[0].get_ylim()[1] > 0.1
    for line in curves.axes[0].lines:
        assert line.get_gid() != "held-out" or not line.get_clip_on()


def test_a_step_without_a_number_is_a_gap_and_a_step_between_gaps_a_dot():
    rows = [{"step": s, "queue/lag": value} for s, value in enumerate([1.0, None, 3.0, None], 1)]
    fig = curve_figures.over_seeds(
        {"a": [{"train": rows, "heldout": []}]}, panels.OFF_POLICY[:1], style.looks("a"), curve_figures.Words()
    )
    (line,) = (line for line in fig.axes[0].lines if line.get_gid() == "mean")
    np.testing.assert_array_equal(line.get_ydata(), [1, np.nan, 3, np.nan])
    (dots,) = (line for line in fig.axes[0].lines if line.get_gid() == "alone")
    assert dots.get_xydata().tolist() == [[1, 1], [3, 3]]


def test_ticks_of_a_logarithmic_axis_say_their_values():
    ax = Figure().subplots()
    ax.set_yscale("log")
    style.plain_log(ax.yaxis)
    text = ax.yaxis.get_major_formatter()
    values = (0.5, 1, 20, 5e5, 1e6, 2e6, 5e7, 1e12)
    assert [text(x, 0) for x in values] == [
        *("0.5", "1", "20", "500000", "$10^{6}$", r"$2 \cdot 10^{6}$", r"$5 \cdot 10^{7}$", "$10^{12}$"),
    ]
