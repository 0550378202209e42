"""Tables of a grid: means over seeds, what is missing, published numbers beside."""

import csv
import io
import json

import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.evaluation.trace import PERCENT
from rl_likelihood.report import figures, metrics, table, table_text
from rl_likelihood.report.table import Run
from rl_likelihood.sweeps.grid import named, of_what_varies, point, product, sweep
from tests.report.grids import evaluation, sft_run, text_runs, write_run


def test_a_cell_is_mean_deviation_and_error(runs):
    math, proofs = table.blocks(runs)
    assert math.title == "data math" and [line.name for line in math.lines] == ["untouched", "log_prob", "prob"]
    cell = math.lines[1].cells["greedy_success"]
    assert (cell.mean, cell.sd, cell.se, cell.se_questions, cell.runs) == pytest.approx((45.0, 50**0.5, 5.0, 2.0, 2))
    cell = math.lines[1].cells["perplexity"]
    assert (cell.mean, cell.low, cell.high, cell.se_questions) == pytest.approx((2.5, 1.5, 3.5, 2 / 3.92))
    alone = proofs.lines[2]
    assert (alone.done, alone.runs) == (1, 2) and alone.cells["greedy_success"].sd is None
    assert math.lines[0].cells["greedy_success"].mean == 25.0 and math.lines[0].cells["greedy_success"].runs == 2


def test_a_text_in_place_of_a_number_is_refused_with_file_and_line(runs):
    path = runs[0].workdir / "eval.jsonl"
    path.write_text(path.read_text().replace('"greedy_success": 0.4', '"greedy_success": "0.4"'))
    with pytest.raises(UserError, match=rf"{path}:2: greedy_success is '0\.4"):
        table.blocks(runs)


def test_the_text_says_what_is_missing(runs, tmp_path):
    new = Run({"data": "math", "reward": "jepo", "seed": "0"}, tmp_path / "never started")
    text = table_text.grid_text(table.blocks([*runs, new]))
    lines = text.splitlines()
    (log_prob,) = (line for line in lines[:8] if line.startswith("log_prob"))
    assert "45.0 ± 5.0 (2.0)" in log_prob and "2.50 ± 0.50 (0.51)" in log_prob and log_prob.endswith("2/2")
    (jepo,) = (line for line in lines if line.startswith("jepo"))
    assert jepo.split() == ["jepo", *"-----", "0/1"]
    assert "sampled" not in text, "no run measured it"
    assert lines[-1] == f"{table_text.CAPTION} n = 96 held-out questions."


def test_published_numbers_stand_beside(runs):
    paper = [
        {"labels": {"data": "math", "reward": "prob"}, "greedy_success": (44.19, 0.57), "perplexity": 7.14},
        {"labels": {"reward": "log_prob"}, "perplexity": 2.21},
    ]
    text = table_text.grid_markdown(table.blocks(runs), paper)
    math, proofs = text.split("### data proofs")
    assert "65.0 ± 5.0 (2.0) [44.19 ± 0.57]" in math and "2.50 ± 0.50 (0.51) [7.14]" in math
    assert "44.19" not in proofs and proofs.count("[2.21]") == 1 and "as published" in text


def test_what_was_published_is_there_before_any_run(tmp_path):
    new = [Run({"reward": name, "seed": "0"}, tmp_path / name) for name in ("prob", "sft")]
    paper = [
        {"labels": {"reward": "prob"}, "log_prob_mc32": -1.3},
        {"labels": {"reward": "sft"}, "perplexity_no_chain": 1.65, "chain_length_no_chain": 5.0},
        {"labels": {"reward": "untouched"}, "perplexity": 67.29},
    ]
    (block,) = table.blocks(new)
    assert table_text.matrix(block) == [["reward", "runs"], ["prob", "0/1"], ["sft", "0/1"]]
    head, *lines = table_text.matrix(block, paper)
    texts = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert list(texts) == ["untouched", "prob", "sft"]
    assert texts["untouched"]["perplexity of the answer"] == "- [67.29]"
    assert texts["prob"]["log-prob per token, MC32, nats"] == "- [-1.3]"
    sft = texts["sft"]
    assert (sft["perplexity of the answer"], sft["chain length with tags, tokens"]) == ("- [1.65]", "- [5.0]")


@pytest.mark.parametrize(
    "rates, shown",
    [(sweep("optim.lr", (1e-5, 1e-4)), ("1e-05", "0.0001")), ([{}, {"optim.lr": 1e-4}], ("default", "0.0001"))],
)
def test_learning_rates_are_not_averaged_as_seeds(rates, shown, tmp_path):
    parts = [{"config": "c.py"}], named("reward", {"x": {"reward.name": "prob"}}), rates
    points = of_what_varies([point(p) for p in product(*parts, sweep("seed", (0, 1)))])
    tables = table.blocks(Run(p.labels, tmp_path / p.name) for p in points)
    assert [(t.title, [(line.name, line.runs) for line in t.lines]) for t in tables] == [
        (f"optim.lr {rate}", [("x", 2)]) for rate in shown
    ]


def test_a_run_without_a_label_stands_in_every_table_that_has_its_others(runs, tmp_path):
    sized = [Run({**r.labels, "group": "4" if r.labels["reward"] == "prob" else "32"}, r.workdir) for r in runs]
    tables = table.grouped([*sized, sft_run(tmp_path / "sft")], "reward")
    assert {shared: list(lines) for shared, lines in tables.items()} == {
        (("data", "math"), ("group", "32")): ["log_prob", "sft"],
        (("data", "math"), ("group", "4")): ["prob", "sft"],
        (("data", "proofs"), ("group", "32")): ["log_prob"],
        (("data", "proofs"), ("group", "4")): ["prob"],
    }


def test_a_model_tuned_on_answers_alone_is_asked_without_a_chain(runs, tmp_path):
    sft = sft_run(tmp_path / "sft")
    math = table.blocks([*runs, sft])[0]
    line = math.lines[-1]
    assert line.no_chain and line.cell("greedy_success").mean == 90.0 and line.cell("chain_gain") is None
    head, *lines = table_text.matrix(math)
    texts = dict(zip(head, lines[-1], strict=True))
    assert texts["greedy success, %"] == "90.0†" and texts["perplexity of the answer"] == "1.50†"
    assert texts["chain length with tags, tokens"] == "-" and texts["greedy success without a chain, %"] == "90.0"
    assert "†: asked without a chain" in table_text.CAPTION
    assert figures.loaded(sft, {})["heldout"][-1]["greedy_success"] == 0.9, "curves too"
    (greedy,) = (
        r
        for r in csv.DictReader(io.StringIO(table_text.grid_csv([math])))
        if (r["reward"], r["metric"]) == ("sft", "greedy_success")
    )
    assert (greedy["mean"], greedy["measured"]) == ("90.0", "greedy_success_no_chain"), "what the other tables show"
    (sft.workdir / "config.json").write_text('{"reward.name": "log_prob"}')
    assert not table.without_chain(sft), "the run's config decides"


@pytest.mark.parametrize("chain", ["answer", "both"])
def test_a_model_tuned_on_answers_after_chains_is_asked_after_its_own(chain, tmp_path):
    numbers = evaluation(0.1, 9.0) | {"perplexity_swapped": 9.5}
    run = Run({"reward": "reer_sft", "seed": "0"}, write_run(tmp_path / "run", numbers, samples=9))
    (run.workdir / "config.json").write_text(json.dumps({"reward.name": "sft", "reward.sft_chain": chain}))
    *_, line = table.blocks([run])[0].lines
    assert not line.no_chain and line.cell("perplexity").mean == 9.0 and line.cell("perplexity_swapped").mean == 9.5
    rows = figures.loaded(run, {})
    assert rows["heldout"][-1]["perplexity"] == 9.0, "curves too"
    assert "ratio/max" not in rows["train"][-1], "it samples nothing while it trains"
    assert "correlations" not in figures.grid_figures([run])


def test_a_table_says_what_chains_are_worth(tmp_path):
    """What the report on long answers asks for; sft is asked without a chain and has none of what is of chains."""
    of_chains = {"perplexity_swapped": 2.5, "truncated": 0.25, "trace_area": 0.125}
    of_chains |= {f"trace@{k}": -1.0 + k / 100 for k in PERCENT}
    runs = [
        Run({"reward": name, "seed": "0"}, write_run(tmp_path / name, evaluation(0.5, 2.0) | of_chains))
        for name in ("r3", "sft")
    ]
    head, _, r3, sft = table_text.matrix(table.blocks(runs)[0])
    shown = {k: [a, b] for k, a, b in zip(head, r3, sft, strict=True)}
    assert shown["chain length with tags, tokens"] == ["10.0", "-"]
    assert shown["perplexity of the answer"] == ["2.00 (0.51)", "1.50†"]
    assert shown["perplexity of the answer without a chain"] == ["1.50", "1.50"]
    assert shown["perplexity of the answer after another question's chain"] == ["2.50", "-"]
    assert shown["chains that never open the answer, %"] == ["25.0", "-"]
    assert shown["what parts of the chain add, nats"] == ["0.125", "-"]
    curve = [shown[f"log-prob per token after {k} % of the chain, nats"] for k in PERCENT]
    assert curve == [["-1.000", "-"], ["-0.750", "-"], ["-0.500", "-"], ["-0.250", "-"], ["0.000", "-"]]


def test_texts_have_their_columns_as_one_block(tmp_path):
    (block,) = table.blocks(text_runs(tmp_path))
    head, untouched, r3, sft = table_text.matrix(block)
    columns = [c.name for c in table_text.columns_of(block)]
    at = columns.index("answered")
    assert columns[at : at + 12] == [*table.ANSWERS, *table.BY_INITIAL]
    cells = {name: [row[1 + i] for row in (r3, sft)] for i, name in enumerate(columns)}
    assert cells["answered"] == ["50.0 ± 0.0", "25.0†"], "sft is asked without a chain"
    assert cells["verse_syllables"] == ["1.50 ± 0.00", "0.75†"]
    assert cells["perplexity_swapped_by_initial"] == ["17.00 ± 1.00 (0.51)", "-"]
    assert cells["perplexity_by_initial"] == ["15.00 ± 1.00 (0.51)", "-"]
    initial = block.lines[1].cell("perplexity_by_initial")
    assert (initial.low, initial.high) == (14.0, 16.0) and block.lines[1].cell("perplexity").low is None
    assert cells["perplexity"][0] == "5.00 ± 1.00", "of the run's own evaluation"
    assert set(untouched[1 + at : 13 + at]) == {"-"}
    assert figures.loaded(text_runs(tmp_path)[2], {})["heldout"][-1]["distinct_1"] == 0.2
    assert "answered" not in [c.name for c in table_text.columns_of(table.blocks([sft_run(tmp_path / "x")])[0])]


def test_csv_has_the_published_untouched_model(tmp_path):
    blocks = table.blocks([Run({"reward": "prob", "seed": "0"}, tmp_path / "prob")])
    paper = [{"labels": {"reward": "untouched"}, "perplexity": 67.29}]
    rows = csv.DictReader(io.StringIO(table_text.grid_csv(blocks, paper)))
    of = {(r["reward"], r["metric"]): (r["mean"], r["runs"], r["published"]) for r in rows}
    assert of["untouched", "perplexity"] == ("", "0", "67.29") and of["prob", "perplexity"] == ("", "1", "")


def test_csv_has_every_number(runs):
    paper = [{"labels": {"data": "math", "reward": "prob"}, "perplexity": (7.14, 0.2)}]
    rows = list(csv.DictReader(io.StringIO(table_text.grid_csv(table.blocks(runs), paper))))
    assert len(rows) == 2 * 3 * len(table.GRID_COLUMNS)
    (row,) = (r for r in rows if (r["data"], r["reward"], r["metric"]) == ("math", "prob", "perplexity"))
    assert (row["mean"], row["sd"], row["se"], row["done"]) == ("2.5", "0.707107", "0.5", "2")
    assert (row["se_questions"], row["low"], row["high"]) == ("0.510204", "1.5", "3.5")
    assert row["published"] == "7.14, 0.2"


def test_latex_has_balanced_rows_and_no_bare_signs(runs):
    text = table_text.grid_latex(table.blocks(runs))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 * 4 and len({row.count("&") - row.count(r"\&") for row in rows}) == 1
    assert r"log\_prob" in text and r"45.0 $\pm$ 5.0" in text and r"greedy success, \\ \%" in text and "±" not in text
    assert [text.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [2, 2, 2] and r"\hline" not in text
    assert text.count("n = 96 held-out questions") == text.count(r"\caption") == 2


def test_rows_are_a_label_or_a_field_or_refused(tmp_path):
    run = Run({"reward.name": "prob", "seed": "0"}, tmp_path)
    assert table.row_label([run], "reward") == "reward.name"
    with pytest.raises(UserError, match="'method'.* reward.name, seed"):
        table.row_label([run], "method")


def test_one_run_is_a_line_for_each_evaluation(tmp_path):
    write_run(tmp_path / "a", evaluation(0.5, 2.0))
    block = table.stages(Run({"run": "a"}, tmp_path / "a"))
    assert [line.name for line in block.lines] == ["untouched", "after 4 steps"] and block.rows == "stage"


def test_a_run_that_ended_before_its_last_step_is_finished(tmp_path):
    with metrics.MetricsWriter(tmp_path, 9) as writer:
        for stage in ("step 3", "after 3 steps"):
            writer.eval(3, {"stage": stage})
        writer.status("done", 3)
    assert table.final(tmp_path)["stage"] == "after 3 steps"
