"""Which published claims do the runs of cpu_grid.py or long_answers.py show?

    python -m experiments.claims --root=runs/cpu_grid --out=experiments/results/cpu_grid
    python -m experiments.claims --file=experiments/long_answers.py

A claim is a difference between two rewards, or between means of several. It is computed question by question from the
last evaluations, then averaged over the seeds that all of them have. sft, which trains on answers alone, is asked
without a chain.

cpu_grid.py: the claims of Kwiatkowski et al. 2602.03979, tables 1 to 3. Intervals are percentiles of 2,000 bootstrap
samples of the questions. They do not cover other seeds, so each seed's own difference is listed too. An ordering
appears if the interval and every seed are on its side. It is contradicted if all of them are on the other side. An
ordering of several rewards needs this of every pair. An equality appears if the whole interval is within the claim's
margin, and is contradicted if the whole interval is outside. Not asked: the gap between one chain and 32, which these
runs did not measure.

long_answers.py: the claims of NRT (2602.11549) and DRO (2506.13351), written before the runs. Intervals are Student's
t over the seeds' differences. An ordering appears if the whole interval is on its side, and is contradicted if all of
it is on the other side. It cannot be told if the interval contains 0, or with fewer than two seeds.
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
from scipy.stats import t as student

from rl_likelihood.errors import UserError, exits
from rl_likelihood.evaluation import statistics
from rl_likelihood.report.table import UNTOUCHED, WITHOUT_CHAIN, Run, final, starts, without_chain
from rl_likelihood.sweeps import grid

LOG, EXACT, BETWEEN = ("log_prob", "avg_log_prob"), ("base_rl", "prob"), ("avg_prob", "jepo")
UNITS = {
    "greedy_success": ("points", "{:+.1f}", 100),
    "sampled_success": ("points", "{:+.1f}", 100),
    "log_prob_mc1": ("nats", "{:+.3f}", 1),
    "chain_length": ("tokens", "{:+.1f}", 1),
    "chain_gain_per_token": ("nats", "{:+.3f}", 1),  # log of: perplexity without a chain over perplexity with one
    "trace_area": ("nats", "{:+.4f}", 1),
}
Runs = dict[tuple[str, int], np.ndarray]  # (reward, seed) -> [questions]


@dataclasses.dataclass(frozen=True)
class Claim:
    """`metric` of `these` is larger (sign 1) or smaller (-1) than of `those`, or (0) the same within `margin`.

    over_seeds: its interval covers other seeds, not other questions. For orderings alone.
    """

    words: str
    task: str
    metric: str
    these: tuple[str, ...]
    those: tuple[str, ...]
    sign: int
    margin: float = 0.0
    over_seeds: bool = False


def of_cpu_grid() -> list[Claim]:
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


def of_long_answers() -> list[Claim]:
    """NRT: weights keep chains where plain likelihoods lose them, the chains help more, and -log p is the best weight.
    DRO says it of r3. A chain that helps lowers the perplexity, and the curve of TRACE rises."""
    plain, both = ("log_prob", "avg_log_prob", "avg_prob"), "log_prob, avg_log_prob, avg_prob"
    measures = {"chains": "chain_length", "gain by chains": "chain_gain_per_token", "TRACE": "trace_area"}
    claim = lambda *of: Claim(of[0], "long", *of[1:], over_seeds=True)
    return [
        *(claim(f"chains: {r} shortens them", "chain_length", (r,), (UNTOUCHED,), -1) for r in plain),
        *(
            claim(f"{words}: {r} > {both}", metric, (r,), plain, 1)
            for words, metric in measures.items()
            for r in ("nrt_neg_log", "nrt_inverse", "r3")
        ),
        *(
            claim(f"{words}: nrt_neg_log > nrt_inverse", metric, ("nrt_neg_log",), ("nrt_inverse",), 1)
            for words, metric in {"nats": "log_prob_mc1", **measures}.items()
        ),
    ]


CLAIMS = {"cpu_grid": of_cpu_grid, "long_answers": of_long_answers}  # by the experiment's file


def judged(claim: Claim, runs: Runs, resamples: int = statistics.RESAMPLES) -> dict[str, Any]:
    """The claim's difference, its interval, each seed's, and whether it appears; less where runs are missing."""
    pairs = [(a, b) for a in claim.these for b in claim.those]
    result = _judged(claim, runs, resamples)
    if len(pairs) == 1 or "difference" not in result:
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
        return {"verdict": "cannot be told: not run" if claim.over_seeds else "not run"}
    side = lambda which, s: np.mean([runs[name, s] for name in which], 0)
    each = np.stack([side(claim.these, s) - side(claim.those, s) for s in seeds])  # [seeds, questions]
    by_seed = each.mean(1)
    result = {"difference": each.mean(), "by_seed": by_seed.tolist(), "seeds": seeds}
    if claim.over_seeds and len(seeds) == 1:
        return {"verdict": "cannot be told: one seed", **result}
    low, high = _over_seeds(by_seed) if claim.over_seeds else _over_questions(each, resamples)
    if claim.sign:
        ahead = claim.sign * np.asarray([low, high] if claim.over_seeds else [low, high, *by_seed])
        verdict = "appears" if (ahead > 0).all() else "contradicted" if (ahead < 0).all() else "undecided"
        verdict = "cannot be told" if claim.over_seeds and verdict == "undecided" else verdict
    else:
        outside = low > claim.margin or high < -claim.margin
        inside = -claim.margin <= low and high <= claim.margin
        verdict = "appears" if inside else "contradicted" if outside else "undecided"
    return {"verdict": verdict, **result, "low": low, "high": high}


def _over_questions(each: np.ndarray, resamples: int) -> tuple[float, float]:
    """95 % interval of the mean of `each`, [seeds, questions], by resampling the questions."""
    drawn = np.random.default_rng(0).integers(each.shape[1], size=(resamples, each.shape[1]))
    low, high = np.percentile(each.mean(0)[drawn].mean(1), (2.5, 97.5))
    return low, high


def _over_seeds(by_seed: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of two or more seeds by Student's t."""
    half = student.ppf(0.975, len(by_seed) - 1) * by_seed.std(ddof=1) / len(by_seed) ** 0.5
    return by_seed.mean() - half, by_seed.mean() + half


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
            columns["chain_gain_per_token"] = columns["log_prob_mc1"] - columns["log_prob_no_chain"]
            for metric in UNITS:
                values = columns.get(instead.get(metric, metric))
                if values is not None and np.isfinite(values).all():
                    out.setdefault((labels["task"], metric), {})[name, int(labels["seed"])] = values
    return out


def table(rows: Sequence[tuple[Claim, dict[str, Any]]]) -> str:
    """Markdown, the claims in their order."""
    lines = ["| claim | difference | 95 % interval | by seed | verdict |", "|---|---:|---:|---:|---|"]
    for claim, result in rows:
        unit, form, times = UNITS[claim.metric]
        if "difference" not in result:
            lines.append(f"| {claim.words} | | | | {result['verdict']} |")
            continue
        difference, low, high = (
            form.format(times * result[name]) if name in result else "" for name in ("difference", "low", "high")
        )
        interval = f"{low} to {high}" if low else ""
        seeds = ", ".join(form.format(times * x) for x in result["by_seed"])
        lines.append(f"| {claim.words} | {difference} {unit} | {interval} | {seeds} | {result['verdict']} |")
    return "\n".join(lines) + "\n"


@exits
def main() -> int:
    parser = argparse.ArgumentParser(description="Which published claims a grid's runs show.")
    parser.add_argument("--file", default="experiments/cpu_grid.py")
    parser.add_argument("--root", default="", help="folder of its runs; runs/NAME by default")
    parser.add_argument("--out", default="", help="folder for claims.md and claims.json; none by default")
    a = parser.parse_args()
    name = Path(a.file).stem
    if name not in CLAIMS:
        raise UserError(f"--file is {a.file}, of which no claims are written; use one of {', '.join(CLAIMS)}")
    runs = read_runs(Path(a.root or f"runs/{name}"), a.file)
    rows = [(claim, judged(claim, runs.get((claim.task, claim.metric), {}))) for claim in CLAIMS[name]()]
    print(table(rows), end="")
    if a.out:
        Path(a.out).mkdir(parents=True, exist_ok=True)
        Path(a.out, "claims.md").write_text(table(rows))
        results = [{**dataclasses.asdict(claim), **result} for claim, result in rows]
        Path(a.out, "claims.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
