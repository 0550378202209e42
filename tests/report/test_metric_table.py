"""The table of metrics: whole, unambiguous, and what docs/metrics.md says."""

import ast
import re
from pathlib import Path

import pytest

import rl_likelihood
from rl_likelihood import config, train
from rl_likelihood.evaluation.statistics import SHARES
from rl_likelihood.report import metric_table
from rl_likelihood.report.metric_table import METRICS, metric, unknown
from rl_likelihood.runtime import run_files
from tests.runs import small_config

ROOT = Path(__file__).parents[2]


def test_the_document_is_made_from_the_table():
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert text == metric_table.markdown() + "\n", "python -m rl_likelihood.report.metric_table > docs/metrics.md"


def test_every_row_is_whole_and_no_two_of_a_file_have_one_label():
    for m in METRICS.values():
        assert m.file in ("metrics.jsonl", "eval.jsonl") and m.better in ("higher", "lower", ""), m
        assert m.label and m.definition.endswith(".") and "|" not in m.definition + m.label, m
    labels = [(m.file, m.label) for m in METRICS.values()]
    assert len(set(labels)) == len(labels)


def test_zero_of_n_has_an_interval_for_every_share_of_an_evaluation():
    for row in METRICS.values():
        if row.file == "eval.jsonl" and not row.name.endswith("_se"):
            assert row.name.startswith(SHARES) == (row.unit == "%"), row.name


def test_one_row_describes_a_family_and_its_own_row_comes_first():
    assert metric("pass@16").label == "pass@16" and metric("log_prob_mc32").label == "log-prob per token, MC32"
    assert metric("log_prob_mc32_per_token").label == "log-prob per token of all answers, MC32"
    assert metric("reward/prob").label == "reward prob" and metric("reward/mean").label == "reward in training"
    assert metric("pass^4").label == "pass^4" and metric("pass^4/mms_issue").label == "pass^4 of mms_issue"
    for name in ("pass@many", "log_prob_mc", "rewards/prob", "perplexity_none"):
        with pytest.raises(KeyError):
            metric(name)
    assert unknown({"step": 1, "reward/mean": 0.5, "new": 1, "ci95": {}}) == ["new"]


@pytest.mark.slow  # tests/test_train.py asks the same of one run
@pytest.mark.parametrize(
    "overrides",
    [
        {"reward__name": "0.5*log_prob + 0.1*format + majority_vote", "eval__mc_samples": 3},
        {"reward__name": "sft"},
        {"loss__kl": "k3", "loss__kl_coef": 0.1, "sampler__max_staleness": 1},
    ],
    ids=lambda x: str(next(iter(x.values()))),
)
def test_a_run_writes_no_metric_that_the_table_lacks(tmp_path, overrides):
    train.run(config.build(small_config(train__steps=2, **overrides)), tmp_path)
    for name in (run_files.METRICS, run_files.EVAL):
        rows = run_files.read(tmp_path / name)
        assert len(rows) == 2
        for row in rows:
            assert unknown(row) == []


def test_no_source_names_a_metric_that_the_table_lacks():
    """Names that no small run writes count too: strings such as "loss/policy" anywhere in the package."""
    kinds = {name.partition("/")[0] for name in METRICS if "/" in name}
    for path in Path(rl_likelihood.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if re.fullmatch(r"[a-z]+/[a-z_]+", text) and text.partition("/")[0] in kinds:
                assert unknown({text: 0.0}) == [], f"{path}:{node.lineno}"
