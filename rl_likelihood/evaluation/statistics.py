"""The numbers of an evaluation, from its records: one question each, every number recomputed from the file.

    python -m rl_likelihood.evaluation.statistics RUN/evaluations/NAME.jsonl

A question's record holds (`evaluation/evaluate.py` writes it)

    answer_tokens      T_a, scored tokens of the reference answer
    greedy             the greedy chain: right, chain_tokens, own_tokens, truncated
    samples            a list of sampled chains, each with the same and log_prob (of the whole reference answer
                       after it, nats) and vote (number of the first sample with the same answer, as a number or as text
                       whatever the grader; null without an answer)
    no_chain           after no chain: right (greedy), log_prob, chain_tokens (of the empty scaffold), and samples, a
                       list of sampled answers, each with right
    swapped            log_prob after another question's chain, or null
    by_initial         with eval.by_initial: log_prob by the initial model, of samples, swapped and no_chain
    trace              with eval.trace: log_prob after 0, 25, 50, 75, 100 % of the first sampled chain
    transition_words   per hundred words of its chains

With eval.texts an answer has no `right`, but what evaluation/texts.py and verse.py measure of it.

`right` is null where a grader failed, which counts as neither right nor wrong.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import betaincinv

from rl_likelihood.errors import UserError, exits
from rl_likelihood.evaluation import texts, trace
from rl_likelihood.runtime import run_files

Record = Mapping[str, Any]
Columns = dict[str, np.ndarray]  # name -> [n], NaN where a question has no value

RESAMPLES = 2000
# How the names of shares begin: of all metrics of eval.jsonl that are in % in report/metrics.csv. This package may not
# import report; a test compares the two.
SHARES = tuple(
    """greedy_success sampled_success pass@ pass^ majority@ greedy_truncated truncated chain_helps done transfer
    out_of_turns no_call answered copied verse_lines verse_rhymes""".split()
)
WITH_STANDARD_ERROR = ("greedy_success", "sampled_success", "log_prob_mc1")
NORMAL = 2 * 1.96  # standard errors in a 95 % interval
_CHUNK = 4_000_000  # question counts held at one time


def summary(records: Sequence[Record], resamples: int = RESAMPLES) -> dict[str, Any]:
    """The metrics of all questions (docs/metrics.md defines them), 95 % intervals in `ci95`, and how many questions
    they come from, `questions`.

    A metric that no record has is left out; `questions_of` says of metrics that not all records have, how many have.

    Intervals are percentiles over `resamples` bootstrap samples of the questions. Where a share is 0, or 1, in every
    question, these see no spread. Its interval is then the exact one of Clopper and Pearson, 0 to 1 - 0.025^(1/n) for
    0 of n, and its standard error the width of that / 3.92. Of one question only such intervals are known.
    """
    q, n = columns(records), len(records)
    with np.errstate(invalid="ignore", divide="ignore"):
        point = {k: float(v[0]) for k, v in _metrics(q, np.ones((1, n))).items()}
    point = {k: v for k, v in point.items() if math.isfinite(v)}
    exact = {k: ends for k in point if (ends := _exact_interval(k, q)) is not None}
    intervals = (_bootstrap(q, list(point), n, resamples) if n > 1 else {}) | exact
    errors = {k: _standard_error(q[k]) for k in WITH_STANDARD_ERROR if k in point}
    errors |= {k: (exact[k][1] - exact[k][0]) / NORMAL for k in errors.keys() & exact.keys()}
    counts = {k: int(np.isfinite(q[k]).sum()) for k in point if k in q}
    return {
        **{k: round(v, 6) for k, v in (point | {f"{k}_se": v for k, v in errors.items()}).items()},
        "grader_failures": _failures(records),  # answers that hung or crashed a grader
        "ci95": {k: [round(float(x), 6) for x in intervals[k]] for k in point if k in intervals},
        "questions": n,
        "questions_of": {k: count for k, count in counts.items() if count < n},
    }


def with_more(out: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`out`, a summary, with the metrics that only `more` has, a summary of other samples. Their intervals come with
    them, and how many questions they are made of where these are fewer."""
    names = [k for k in more if k not in out]
    of = {k: more["questions_of"].get(k, more["questions"]) for k in names if not k.endswith("_se")}
    return {
        **out,
        **{k: more[k] for k in names},
        "ci95": out["ci95"] | {k: more["ci95"][k] for k in names if k in more["ci95"]},
        "questions_of": out["questions_of"] | {k: n for k, n in of.items() if n < out["questions"]},
    }


def columns(records: Sequence[Record]) -> Columns:
    """What each question adds: a metric is a mean of a column, or (names with _) made of means."""

    def of_greedy(name: str) -> np.ndarray:
        return _array([r["greedy"].get(name) for r in records])

    m = len(records[0]["samples"])
    if records[0].get("conversation"):
        return _of_conversations(records, m)
    q: Columns = {"greedy_success": of_greedy("right")}
    if m:
        q |= _of_samples(records, m)
        q |= _of_texts(records)
    q |= {
        "greedy_success_no_chain": _array([(r.get("no_chain") or {}).get("right") for r in records]),
        "sampled_success_no_chain": _mean(
            _array([[s.get("right") for s in (r.get("no_chain") or {}).get("samples", ())] or [None] for r in records])
        ),
        "greedy_chain_length": of_greedy("chain_tokens"),
        "greedy_truncated": of_greedy("truncated"),
    }
    return q


def _of_conversations(records: Sequence[Record], m: int) -> Columns:
    """The columns of conversations with an environment (evaluation/conversations.py)."""
    greedy = {k: _array([r["greedy"][k] for r in records]) for k in ("right", *_COUNTED)}
    q: Columns = {"greedy_success": greedy["right"], "greedy_truncated": greedy["truncated"]}
    if m:
        right = _array([[s["right"] for s in r["samples"]] for r in records])
        q["sampled_success"] = _mean(right)
        q |= {f"pass@{k}": np.asarray([_pass_at(row, k) for row in right]) for k in range(2, m + 1)}
        q |= {f"pass^{k}": np.asarray([_pass_all(row, k) for row in right]) for k in range(2, m + 1)}
    for name, metric in _COUNTED.items():
        q[metric] = _mean(_array([[e[name] for e in (r["greedy"], *r["samples"])] for r in records]))
    for name, ended in _ENDED.items():
        of = lambda e, ended=ended: None if e.get("end") is None else ended(e)
        q[name] = _mean(_array([[of(e) for e in (r["greedy"], *r["samples"])] for r in records]))
    kinds = [r["kind"] for r in records]
    by_kind = [k for k in ("greedy_success", "sampled_success", f"pass^{m}", "turns", "calls", "bad_calls") if k in q]
    for kind in sorted(set(kinds) - {""}) if len(set(kinds)) > 1 else ():
        q |= {f"{k}/{kind}": np.where(np.asarray(kinds) == kind, q[k], np.nan) for k in by_kind}
    return q


# Of a conversation: what it is called in a record, and its metric, over greedy and sampled conversations.
_COUNTED = {
    "reward": "env_reward",
    "calls_f1": "calls_f1",
    "turns": "turns",
    "calls": "calls",
    "bad_calls": "bad_calls",
    "chain_tokens": "chain_length_no_tags",
    "truncated": "out_of_turns",
}

# How a conversation ended, as shares of greedy and sampled ones; `out_of_turns` is above.
_ENDED: dict[str, Callable[[Record], bool]] = {
    "done": lambda e: e["end"] == "done",
    "transfer": lambda e: e["end"] == "transfer",
    "no_call": lambda e: e["truncated"] and e["calls"] == 0,
}


def _pass_all(right: np.ndarray, k: int) -> float:
    """The probability that k of the conversations drawn without replacement are all right (pass^k of tau-bench)."""
    right = right[np.isfinite(right)]
    return math.comb(int(right.sum()), k) / math.comb(len(right), k) if len(right) >= k else math.nan


def _of_samples(records: Sequence[Record], m: int) -> Columns:
    def of(name: str) -> np.ndarray:
        return _array([[s.get(name) for s in r["samples"]] for r in records])

    right, logp, length = of("right"), of("log_prob"), of("chain_tokens")
    tokens = _array([r["answer_tokens"] for r in records])
    no_chain = _array([r["no_chain"]["log_prob"] for r in records])
    swapped = _array([r.get("swapped") for r in records])
    powers = [2**i for i in range(1, 11) if 2**i <= m]
    q = {
        "sampled_success": _mean(right),
        **{f"pass@{k}": np.asarray([_pass_at(row, k) for row in right]) for k in powers},
    }
    if np.isfinite(right).any():
        votes = [[s["vote"] for s in r["samples"]] for r in records]
        q |= {
            f"majority@{k}": np.asarray([_majority(v, x, k) for v, x in zip(votes, right, strict=True)]) for k in powers
        }
    q |= {"log_prob_mc1": logp.mean(1) / tokens, "_mc1": logp.mean(1), "_tokens": tokens}
    for k in sorted({m, min(m, 32)} - {1}):
        lme = _log_mean_exp(logp, k)
        q |= {f"log_prob_mc{k}": lme / tokens, f"_mc{k}": lme}
    x, y = length - length.mean(), logp - logp.mean()  # centred once: differences of squares keep their digits
    q |= trace.curves(records, tokens) | _of_initial(records, tokens)
    return q | {
        "log_prob_no_chain": no_chain / tokens,
        "log_prob_swapped": swapped / tokens,
        "chain_gain": logp.mean(1) - no_chain,
        "chain_helps": (logp > no_chain[:, None]).mean(1),
        "chain_swap_drop": logp.mean(1) - swapped,
        "answer_log_prob": logp.mean(1),
        "answer_log_prob_no_chain": no_chain,
        "answer_log_prob_greedy": _array([r["greedy"].get("log_prob") for r in records]),
        "answer_tokens": tokens,
        "chain_length": length.mean(1),
        "chain_length_no_tags": of("own_tokens").mean(1),
        "chain_length_no_chain": _array([r["no_chain"].get("chain_tokens") for r in records]),
        "truncated": of("truncated").mean(1),
        "transition_words": _array([r["transition_words"] for r in records]),
        "length_correlation_in_prompt": _correlation_in_rows(length, logp),
        **{f"_{name}": v.mean(1) for name, v in (("x", x), ("y", y), ("xx", x * x), ("yy", y * y), ("xy", x * y))},
    }


def _of_texts(records: Sequence[Record]) -> Columns:
    if "answer" not in records[0]["samples"][0] or "right" in records[0]["samples"][0]:
        return {}
    direct = texts.columns([r["no_chain"]["samples"] for r in records])
    return texts.columns([r["samples"] for r in records]) | {f"no_chain/{name}": v for name, v in direct.items()}


def _of_initial(records: Sequence[Record], tokens: np.ndarray) -> Columns:
    """Log-probs per token by the initial model; nothing where it was not asked."""
    if any("by_initial" not in r for r in records):
        return {}
    by = [r["by_initial"] for r in records]
    q = {
        "_initial_mc1": _array([r["samples"] for r in by]).mean(1),
        "_initial_no_chain": _array([r["no_chain"] for r in by]),
        "_initial_swapped": _array([r["by_initial"]["swapped"] if r["swapped"] is not None else None for r in records]),
    }
    return {k: v / tokens for k, v in q.items()}


def _metrics(q: Columns, weights: np.ndarray) -> Columns:
    """Every metric, [B], from how often each question counts, `weights` [B, n]. NaN where it is not defined."""
    columns = np.stack(list(q.values()), 1)
    there = np.isfinite(columns)
    means = (weights @ np.where(there, columns, 0.0)) / (weights @ there.astype(float))
    mean = dict(zip(q, means.T, strict=True))
    out = {k: v for k, v in mean.items() if not k.startswith("_")}
    out |= {f"log_prob{k}_per_token": mean[k] / mean["_tokens"] for k in mean if k.startswith("_mc")}
    if "_mc1" in mean:
        out["perplexity"] = np.exp(-mean["log_prob_mc1"])
        out["perplexity_no_chain"] = np.exp(-mean["log_prob_no_chain"])
        out["perplexity_swapped"] = np.exp(-mean["log_prob_swapped"])
        for k in ("mc1", "swapped", "no_chain") if "_initial_mc1" in mean else ():
            name = "perplexity" + ("" if k == "mc1" else f"_{k}")
            out[f"{name}_by_initial"] = np.exp(-mean[f"_initial_{k}"])
        x, y, xx, yy, xy = (mean[f"_{k}"] for k in ("x", "y", "xx", "yy", "xy"))
        out["length_correlation"] = (xy - x * y) / np.sqrt(_spread(xx, x) * _spread(yy, y))
    return out


def _spread(square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Variance; NaN where rounding is all there is of it."""
    variance = square - mean * mean
    return np.where(variance > 1e-12 * square, variance, np.nan)


def _bootstrap(q: Columns, names: list[str], n: int, resamples: int) -> dict[str, list[float]]:
    """Percentiles 2.5 and 97.5 of each metric. The same records give the same intervals."""
    parts = []
    for weights in resampled(n, resamples):
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(_metrics(q, weights))
    drawn = {k: np.concatenate([part[k] for part in parts]) for k in names}
    drawn = {k: v[np.isfinite(v)] for k, v in drawn.items()}  # a resample without any question that has it
    return {k: interval(v) for k, v in drawn.items() if len(v)}


def resampled(n: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each of n questions is drawn in `resamples` bootstrap samples, a part [b, n] at a time. The same in
    every call."""
    rng, size = np.random.default_rng(0), max(1, _CHUNK // n)
    for at in range(0, resamples, size):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(size, resamples - at)).astype(float)


def interval(values: np.ndarray) -> list[float]:
    """The middle 95 % of resampled values."""
    return [float(x) for x in np.percentile(values, (2.5, 97.5))]


def exact_interval(right: float, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share, `right` of n, where a tie is half right."""
    low = betaincinv(right, n - right + 1, 0.025) if right > 0 else 0.0
    return float(low), float(betaincinv(right + 1, n - right, 0.975)) if right < n else 1.0


def interval_of_equal(values: np.ndarray) -> tuple[float, float] | None:
    """The exact interval of a share that is 0 in all questions, or 1 in all: resampling sees no spread. None for any
    other share."""
    return exact_interval(values.sum(), len(values)) if values[0] in (0, 1) and np.ptp(values) == 0 else None


def _exact_interval(name: str, q: Columns) -> tuple[float, float] | None:
    """`interval_of_equal` of a metric that is a share; None for any other metric."""
    if not name.removeprefix("no_chain/").startswith(SHARES):
        return None
    return interval_of_equal(q[name][np.isfinite(q[name])])


# ------------------------------------------------------------------------------------------- one question


def _array(values: list) -> np.ndarray:
    """Floats; null is NaN."""
    return np.asarray(values, dtype=object).astype(float) if values else np.empty(0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is there; NaN where nothing is."""
    there = np.isfinite(values)
    return np.where(there, values, 0).sum(-1) / np.where(there.any(-1), there.sum(-1), np.nan)


def _pass_at(right: np.ndarray, k: int) -> float:
    """Of the samples [m] that were graded; NaN if fewer than k were."""
    graded = right[np.isfinite(right)]
    n, c = len(graded), int(graded.sum())
    return 1 - math.comb(n - c, k) / math.comb(n, k) if n >= k else math.nan


def _majority(votes: Sequence[int | None], right: np.ndarray, k: int) -> float:
    """Share of the blocks of k samples whose plurality is right; a block without any answer is wrong."""
    marks = []
    for at in range(0, len(votes) - k + 1, k):
        block = votes[at : at + k]
        answered = [v for v in block if v is not None]
        if not answered:
            marks.append(0.0)
            continue
        winner = max(dict.fromkeys(answered), key=answered.count)  # of a tie the first
        marks.append(right[at + block.index(winner)])
    return float(_mean(np.asarray(marks)))


def _log_mean_exp(logp: np.ndarray, k: int) -> np.ndarray:
    """LME of k samples, mean over the blocks of k there are: [n, m] -> [n]."""
    n, m = logp.shape
    blocks = logp[:, : m // k * k].reshape(n, -1, k)
    return (np.logaddexp.reduce(blocks, axis=2) - math.log(k)).mean(1)


def _correlation_in_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson of each row [n, m] -> [n]; NaN where one of the two does not vary, or of fewer than 3 samples."""
    if x.shape[1] < 3:
        return np.full(len(x), np.nan)
    x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
    size = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.divide((x * y).sum(1), size, out=np.full(len(x), np.nan), where=size > 1e-9)


def _standard_error(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _failures(records: Sequence[Record]) -> int:
    marks = []
    for r in records:
        direct = r.get("no_chain") or {}
        marks += [r["greedy"], *r["samples"], direct, *direct.get("samples", ())]
    return sum("right" in mark and mark["right"] is None for mark in marks)


# ------------------------------------------------------------------------------------------- file


def read_records(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what the file says of itself, its questions in order). UserError for a file that is not such a one."""
    first, *records = run_files.read(path) or [{}]
    if "identity" not in first or any(r.get("index") != i for i, r in enumerate(records)):
        raise UserError(f"{path}: not the records of an evaluation, or some are missing; delete it and evaluate again")
    return first, records


@exits
def main(argv: Sequence[str] | None = None) -> int:
    prog = "rl_likelihood.evaluation.statistics"
    parser = argparse.ArgumentParser(prog=prog, description="Numbers of an evaluation.")
    parser.add_argument("file", help="records of an evaluation, evaluations/NAME.jsonl in a workdir")
    first, records = read_records(parser.parse_args(argv).file)
    if not records:
        raise UserError("no question has been evaluated yet; run the evaluate command again")
    print(json.dumps({"step": first["step"], **summary(records)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
