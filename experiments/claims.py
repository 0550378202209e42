"""Which published claims do the runs of cpu_grid.py show?

    python -m experiments.claims --root=runs/cpu_grid --out=experiments/results/cpu_grid

The claims are those of Kwiatkowski et al. 2602.03979, tables 1 to 3. Each claim is a difference between two rewards, or
between means of several. It is computed question by question from the last evaluations, then averaged over the seeds
that all of them have. Intervals are percentiles of 2,000 bootstrap samples of the questions. They do not cover other
seeds, so each seed's own difference is listed too.

An ordering appears if the interval and every seed are on its side. It is contradicted if all of them are on the other
side. An ordering of several rewards needs this of every pair. An equality appears if the whole interval is within the
claim's margin, and is contradicted if the whole interval is outside. sft, which trains on answers alone, is asked
without a chain, as in the paper.

Not asked: the gap between one chain and 32, which these runs did not measure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl_likelihood.evaluation import statistics
from rl_likelihood.report.table import UNTOUCHED, WITHOUT_CHAIN, Run, final, starts, without_chain
from rl_likelihood.shapes import exits
from rl_likelihood.sweeps import grid

LOG, EXACT, BETWEEN = ("log_prob", "avg_log_prob"), ("base_rl", "prob"), ("avg_prob", "jepo")
UNITS = {
    "greedy_success": ("points", "{:+.1f}", 100),
    "sampled_success": ("points", "{:+.1f}", 100),
    "log_prob_mc1": ("nats", "{:+.3f}", 1),
    "chain_length": ("tokens", "{:+.1f}", 1),
}
Runs = dict[tuple[str, int], np.ndarray]  # (reward, seed) -> [questions]


@dataclasses.dataclass(frozen=True)
class Claim:
    """`metric` of `these` is larger (sign 1) or smaller (-1) than of `those`, or (0) the same within `margin`."""

    words: str
    task: str
    metric: str
    these: tuple[str, ...]
    those: tuple[str, ...]
    sign: int
    margin: float = 0.0


def claims() -> list[Claim]:
    """Nats are per token: a perplexity is exp of minus log_prob_mc1."""
    greedy, sampled, nats, chain = "greedy_success", "sampled_success", "log_prob_mc1", "chain_length"
    likelihood = ("log_prob", "avg_log_prob", "prob", "avg_prob", "jepo")
    collapse = ("log_prob", "avg_log_prob", "avg_prob", "jepo")
    return [
        *(
            Claim(f"greedy: {r} = base_rl, within 5 points", "short", greedy, (r,), ("base_rl",), 0, 0.05)
            for r in likelihood
        ),
        Claim("T = 1: base_rl, prob > avg_prob, jepo", "short", sampled, EXACT, BETWEEN, 1),
        Claim("T = 1: avg_prob, jepo > log_prob, avg_log_prob", "short", sampled, BETWEEN, LOG, 1),
        Claim("T = 1: base_rl, prob > log_prob, avg_log_prob", "short", sampled, EXACT, LOG, 1),
        Claim("nats: log_prob >= avg_log_prob", "short", nats, ("log_prob",), ("avg_log_prob",), 1),
        Claim("nats: log_prob, avg_log_prob > avg_prob, jepo", "short", nats, LOG, BETWEEN, 1),
        Claim("nats: avg_prob, jepo > base_rl, prob", "short", nats, BETWEEN, EXACT, 1),
        Claim("nats: log_prob > sft (their G = 32)", "short", nats, ("log_prob",), ("sft",), 1),
        Claim("nats: avg_log_prob > sft (their G = 32)", "short", nats, ("avg_log_prob",), ("sft",), 1),
        *(Claim(f"chains: {r} keeps them, within 2 tokens", "short", chain, (r,), (UNTOUCHED,), 0, 2.0) for r in EXACT),
        *(Claim(f"chains: {r} shortens them", "short", chain, (r,), (UNTOUCHED,), -1) for r in LOG),
        Claim("long, nats: log_prob = sft, within 0.05", "long", nats, ("log_prob",), ("sft",), 0, 0.05),
        Claim("long, nats: avg_prob = sft, within 0.05", "long", nats, ("avg_prob",), ("sft",), 0, 0.05),
        Claim("long, nats: prob = untouched, within 0.05", "long", nats, ("prob",), (UNTOUCHED,), 0, 0.05),
        *(Claim(f"long, chains: {r} shortens them", "long", chain, (r,), (UNTOUCHED,), -1) for r in collapse),
        Claim("long, chains: prob keeps them, within 5 tokens", "long", chain, ("prob",), (UNTOUCHED,), 0, 5.0),
    ]


def judged(claim: Claim, runs: Runs, resamples: int = statistics.RESAMPLES) -> dict[str, Any]:
    """The claim's difference, its interval, each seed's, and whether it appears; less where runs are missing."""
    pairs = [(a, b) for a in claim.these for b in claim.those]
    result = _judged(claim, runs, resamples)
    if len(pairs) == 1 or result["verdict"] == "not run":
        return result
    each = {
        f"{a}, {b}": _judged(dataclasses.replace(claim, these=(a,), those=(b,)), runs, resamples)["verdict"]
        for a, b in pairs
    }
    appear = sum(verdict == "appears" for verdict in each.values())
    one = next(iter(each.values())) if len(set(each.values())) == 1 else f"appears in {appear} of {len(pairs)} pairs"
    return {**result, "verdict": one, "pairs": each}


def _judged(claim: Claim, runs: Runs, resamples: int) -> dict[str, Any]:
    names = (*claim.these, *claim.those)
    seeds = sorted({s for _, s in runs if all((name, s) in runs for name in names)})
    if not seeds:
        return {"verdict": "not run"}
    side = lambda which, s: np.mean([runs[name, s] for name in which], 0)
    each = np.stack([side(claim.these, s) - side(claim.those, s) for s in seeds])  # [seeds, questions]
    drawn = np.random.default_rng(0).integers(each.shape[1], size=(resamples, each.shape[1]))
    low, high = np.percentile(each.mean(0)[drawn].mean(1), (2.5, 97.5))
    by_seed = each.mean(1)
    if claim.sign:
        ahead = claim.sign * np.asarray([low, high, *by_seed])
        verdict = "appears" if (ahead > 0).all() else "contradicted" if (ahead < 0).all() else "undecided"
    else:
        outside = low > claim.margin or high < -claim.margin
        inside = -claim.margin <= low and high <= claim.margin
        verdict = "appears" if inside else "contradicted" if outside else "undecided"
    result = {"difference": each.mean(), "low": low, "high": high, "by_seed": by_seed.tolist(), "seeds": seeds}
    return {"verdict": verdict, **result}


def read_runs(root: Path, file: str) -> dict[tuple[str, str], Runs]:
    """(task, metric) -> each run's last evaluation, and the untouched model's where a run has one."""
    out: dict[tuple[str, str], Runs] = {}
    for point in grid.load(file).points:
        run = Run(point.labels, root / point.name)
        last = final(run.workdir)
        if last is None:
            continue
        labels, names = run.labels, WITHOUT_CHAIN if without_chain(run) else {}
        asked = [(labels["reward"], last, names)]
        asked += [(UNTOUCHED, row, {}) for row in starts([run]).values()]
        for name, row, instead in asked:
            _, records = statistics.read_records(str(run.workdir / row["records"]))
            columns = statistics.columns(records)
            for metric in UNITS:
                values = columns.get(instead.get(metric, metric))
                if values is not None and np.isfinite(values).all():
                    out.setdefault((labels["task"], metric), {})[name, int(labels["seed"])] = values
    return out


def table(rows: Sequence[tuple[Claim, dict[str, Any]]]) -> str:
    """Markdown, the claims in their order."""
    lines = ["| claim | difference | 95 % interval | by seed | |", "|---|---:|---:|---:|---|"]
    for claim, result in rows:
        unit, form, times = UNITS[claim.metric]
        if result["verdict"] == "not run":
            lines.append(f"| {claim.words} | | | | not run |")
            continue
        difference, low, high = (form.format(times * result[name]) for name in ("difference", "low", "high"))
        seeds = ", ".join(form.format(times * x) for x in result["by_seed"])
        lines.append(f"| {claim.words} | {difference} {unit} | {low} to {high} | {seeds} | {result['verdict']} |")
    return "\n".join(lines) + "\n"


@exits
def main() -> int:
    parser = argparse.ArgumentParser(description="Which published claims a grid's runs show.")
    parser.add_argument("--file", default="experiments/cpu_grid.py")
    parser.add_argument("--root", default="runs/cpu_grid", help="folder of its runs")
    parser.add_argument("--out", default="", help="folder for claims.md and claims.json; none by default")
    a = parser.parse_args()
    runs = read_runs(Path(a.root), a.file)
    rows = [(claim, judged(claim, runs.get((claim.task, claim.metric), {}))) for claim in claims()]
    print(table(rows), end="")
    if a.out:
        Path(a.out).mkdir(parents=True, exist_ok=True)
        Path(a.out, "claims.md").write_text(table(rows))
        results = [{**dataclasses.asdict(claim), **result} for claim, result in rows]
        Path(a.out, "claims.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
