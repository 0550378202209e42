"""What tells right options of TeleQnA from wrong ones: a reward model, and the untrained model asked in other ways.

    python -m rl_likelihood.datasets.prepare --dataset=teleqna_pairs --out=data
    python -m rl_likelihood.reward_model --config=configs/reward_model.py --workdir=runs/rm
    python -m experiments.reward_model --data=data/teleqna_pairs/1.0.0 --reward_model=runs/rm

Every row of the table is of the same held-out questions, with 95 % intervals over them, and beside it stands what an
option's length alone gets. The last lines are an over-optimisation curve: a policy names a random option, and the
reward model picks the best of n. Writes experiments/results/reward_model.json and prints the tables of docs/judges.md.
Finished rows are read again from there. A model of 135 M parameters is no good judge in any of these ways.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rl_likelihood.data import judged_text, prepared
from rl_likelihood.data.judged_text import BETTER, CORRECT, EXPERT, SCORE, Form, Reader
from rl_likelihood.data.order import in_batches
from rl_likelihood.data.pairs import Comparison, of_example
from rl_likelihood.evaluation.preference import Scored, best_of_curve, summary
from rl_likelihood.learner.adversarial import verdicts
from rl_likelihood.learner.judge import Judge, JudgeParams, make_judge, word_logits
from rl_likelihood.model.architecture import ModelConfig, Params, head_matrix
from rl_likelihood.model.decoder import Completions, forward
from rl_likelihood.model.head import token_stats
from rl_likelihood.rollouts.local_judge import LocalJudge, load_decoder, local_judge, reader_of
from rl_likelihood.shapes import CHAIN, PAD, Compared, Judged

OUT = Path(__file__).parent / "results" / "reward_model.json"
AT_ONCE = 4  # questions of one call
ORDERS = 2  # of the options, where the model is asked for a letter
LETTERS = Form(
    "Question:\n{question}\n{answers}\n\nWhich option is right? Reply with one letter.",
    ("Options:\n", ""),
    ("A", "B", "C", "D", "E"),
)
UNASKED = "Answer:"  # a question that says nothing, for what an option is likely without one
SHOWN = ("pair_accuracy", "accuracy_when_shorter", "best_of_options")


@dataclasses.dataclass(frozen=True)
class Model:
    """The model that is asked, and how it reads."""

    path: str
    config: ModelConfig
    params: Params

    def reader(self, form: Form, rows: Sequence[Comparison], texts: Sequence[Sequence[tuple[str, ...]]]) -> Reader:
        """Wide enough for all of these questions and rows, and no wider."""
        most = self.config.max_position // 2
        reader, _ = reader_of(self.path, form, most, most)
        longest, widest = 1, 1
        for row, group in zip(rows, texts, strict=True):
            judged = judged_text.encode(reader, [row.prompt], [group]).judged
            longest, widest = max(longest, judged.prompt_length.max()), max(widest, judged.row_length.max())
        widest += len(form.pieces) * len(form.pieces[1:])  # slack
        return dataclasses.replace(reader, max_prompt=int(longest), max_row=int(widest))

    def asked(self, form: Form, rows: Sequence[Comparison], texts: Sequence[Sequence[tuple[str, ...]]]) -> np.ndarray:
        """The log of the odds of the form's first word, [questions, texts of each]."""
        reader = self.reader(form, rows, texts)
        judge = Judge("judge", self.config, judged_text.words_of(reader))
        local = LocalJudge(reader, judge, JudgeParams(self.params), make_judge(judge), AT_ONCE)
        p = np.clip(local([r.prompt for r in rows], texts).values.astype(float), 1e-9, 1 - 1e-9)
        return np.log(p) - np.log1p(-p)


def padded(rows: Sequence[Comparison]) -> list[list[tuple[str, ...]]]:
    """The options of each question as rows, as many as the most; the last one again where there are fewer."""
    most = max(len(r.answers) for r in rows)
    return [[(a,) for a in (*r.answers, *r.answers[-1:] * (most - len(r.answers)))] for r in rows]


def batches(reader: Reader, questions: Sequence[str], texts: Sequence) -> list[Judged]:
    """AT_ONCE questions each, the last one filled up."""
    parts = (zip(*part, strict=True) for _, part in in_batches(list(zip(questions, texts, strict=True)), AT_ONCE))
    return [judged_text.encode(reader, *map(list, part)).judged for part in parts]


def row_log_prob(params: Params, model: ModelConfig, judged: Judged) -> jax.Array:
    """The log-prob of each row after its prompt, [P, Q]."""
    there = jnp.arange(judged.rows.shape[-1]) < judged.row_length[..., None]
    rows = Completions(judged.rows, jnp.where(there, CHAIN, PAD), references=0)
    hidden = forward(params, model, judged.prompt, judged.prompt_length, rows)
    last = jnp.take_along_axis(hidden.prompt, (judged.prompt_length - 1)[:, None, None], 1)
    first = jnp.broadcast_to(last[:, None], (*judged.rows.shape[:2], 1, last.shape[-1]))
    before = jnp.concatenate([first, hidden.completion[:, :, :-1]], 2)
    stats = token_stats(before, head_matrix(params), judged.rows, chunk=512)
    return jnp.where(there, stats.log_prob, 0.0).sum(-1)


def likelihoods(m: Model, rows: Sequence[Comparison]) -> dict[str, list[np.ndarray]]:
    """Log-probs of the options as the model's own answers: summed, per token, and minus those without the question.
    `option_prob` is their softmax: it ranks as the sum."""
    texts, run = padded(rows), jax.jit(row_log_prob, static_argnums=1)
    reader = m.reader(SCORE, rows, texts)

    def log_probs(questions):
        parts = [(np.asarray(run(m.params, m.config, b)), b.row_length) for b in batches(reader, questions, texts)]
        return (np.concatenate(x)[: len(rows)] for x in zip(*parts, strict=True))

    total, length = log_probs([r.prompt for r in rows])
    bare, _ = log_probs([UNASKED] * len(rows))
    return {
        "option likelihood, sum (ranks as option_prob)": own(rows, total),
        "option likelihood, per token": own(rows, total / length),
        "option likelihood, minus that without the question": own(rows, total - bare),
    }


def letters(m: Model, rows: Sequence[Comparison]) -> dict[str, list[np.ndarray]]:
    """Log-probs of the letters of the options, which are listed in ORDERS random orders."""
    rng = np.random.default_rng(0)
    orders = [[rng.permutation(len(r.answers)) for _ in range(ORDERS)] for r in rows]
    texts = [
        [("\n".join(f"{LETTERS.words[i]}. {r.answers[j]}" for i, j in enumerate(order)),) for order in group]
        for r, group in zip(rows, orders, strict=True)
    ]
    reader = m.reader(LETTERS, rows, texts)
    run, words = jax.jit(word_logits, static_argnums=(1, 2)), judged_text.words_of(reader)
    logits = np.concatenate(
        [np.asarray(run(m.params, m.config, words, b)) for b in batches(reader, [r.prompt for r in rows], texts)]
    )
    out = []
    for group, of_question in zip(orders, logits, strict=False):
        each = [of_order[np.argsort(order)] for order, of_order in zip(group, of_question, strict=True)]
        out.append(np.mean([x - np.logaddexp.reduce(x) for x in each], 0))
    return {f"letter, mean of {ORDERS} orders": out}


def yes(m: Model, rows: Sequence[Comparison]) -> dict[str, list[np.ndarray]]:
    """The odds that the model calls an option correct."""
    return {"P(yes)": own(rows, m.asked(CORRECT, rows, padded(rows)))}


def pairs(m: Model, rows: Sequence[Comparison]) -> dict[str, list[np.ndarray]]:
    """The right option against each wrong one, in both orders: 0 for the right one, minus its preference for others."""
    texts = padded(rows)
    first = m.asked(BETTER, rows, [[(group[0][0], x[0]) for x in group[1:]] for group in texts])
    second = m.asked(BETTER, rows, [[(x[0], group[0][0]) for x in group[1:]] for group in texts])
    zero = np.zeros((len(rows), 1))

    def scores(preference):
        return own(rows, np.concatenate([zero, -preference], 1))

    return {"pairwise, both orders": scores((first - second) / 2), "pairwise, right one first": scores(first)}


def experts(m: Model, rows: Sequence[Comparison]) -> dict[str, list[np.ndarray]]:
    """The untrained critic of adversarial.form=label. The right option is the expert's, a wrong one the policy's:
    how much likelier it names the expert's, in both orders."""
    texts = [[(group[0][0], x[0]) for x in group[1:]] for group in padded(rows)]
    reader, run = m.reader(EXPERT, rows, texts), jax.jit(verdicts, static_argnums=0)
    ids = np.asarray([[each[0] for each in judged_text.words_of(reader)]] * AT_ONCE, np.int32)

    def preference(texts, expert_first):
        signs = np.full((AT_ONCE, len(texts[0])), 1 if expert_first else -1, np.float32)
        parts = [
            run(m.config, m.params, Compared(judged, signs != 0, signs, ids))
            for judged in batches(reader, [r.prompt for r in rows], texts)
        ]
        return np.concatenate([np.asarray(x.expert - x.policy) for x in parts])[: len(rows)]

    first = preference(texts, True)
    second = preference([[pair[::-1] for pair in group] for group in texts], False)
    scores = np.concatenate([np.zeros((len(rows), 1)), -(first + second) / 2], 1)
    return {"label critic, both orders": own(rows, scores)}


def own(rows: Sequence[Comparison], scores: np.ndarray) -> list[np.ndarray]:
    """Each question's scores, of its own options alone."""
    return [np.asarray(x[: len(r.answers)], float) for r, x in zip(rows, scores, strict=True)]


def measure(scores: Sequence[np.ndarray], rows: Sequence[Comparison]) -> dict:
    """`preference.summary` of one way to score."""
    return summary([Scored(r.prompt, r.answers, s, r.category, r.refers) for r, s in zip(rows, scores, strict=True)])


def table(results: dict) -> str:
    """The tables of docs/judges.md, from the results."""
    shown = " | ".join(x.replace("_", " ") for x in SHOWN)
    lines = [f"| scored by | {shown} | ECE | rank correlation with length |", "|---|"]
    lines[1] += "---:|" * (len(SHOWN) + 2)
    for name, row in results["rows"].items():
        cells = [f"{row[k]:.1%} ({row['ci95'][k][0]:.0%} to {row['ci95'][k][1]:.0%})" for k in SHOWN]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['ece']:.2f} | {row['length_correlation']:.2f} |")
    any_row = next(iter(results["rows"].values()))
    for name in (x for x in ("length_only", "overlap_only", "referring_only") if f"{x}_pair_accuracy" in any_row):
        cells = f"{any_row[f'{name}_pair_accuracy']:.1%} | | {any_row[f'{name}_best_of_options']:.1%}"
        lines.append(f"| {name.replace('_', ' ')} | {cells} | | |")
    lines += [f"| chance | 50.0% | 50.0% | {any_row['chance_best_of_options']:.1%} | | |", ""]
    if "best_of" in results:
        lines += ["| n | KL | score | right |", "|---|---:|---:|---:|"]
        lines += [
            f"| {r['n']} | {r['kl']:.2f} | {r['proxy']:.3f} | {r['gold']:.1%} ± {r['gold_error']:.1%} |"
            for r in results["best_of"]
        ]
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", default="data/teleqna_pairs/1.0.0", help="prepared comparisons")
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--reward_model", default="", help="workdir of a reward model; empty: none")
    arguments.add_argument("--questions", type=int, default=100)
    arguments.add_argument("--out", type=Path, default=OUT)
    a = arguments.parse_args()
    rows = [of_example(e) for e in prepared.load(a.data, "train", "test")[1]][: a.questions]
    same = {"model": a.model, "questions": len(rows), "pairs": sum(len(r.answers) - 1 for r in rows)}
    results = json.loads(a.out.read_text()) if a.out.exists() else {}
    if {k: results.get(k) for k in same} != same:
        results = {**same, "done": [], "rows": {}}

    def save(name: str, scores: dict[str, list[np.ndarray]]) -> None:
        results["rows"] |= {label: measure(x, rows) for label, x in scores.items()}
        results["done"].append(name)
        a.out.parent.mkdir(exist_ok=True)
        a.out.write_text(json.dumps(results, indent=1) + "\n")

    ways: dict[str, Callable] = {
        "likelihoods": likelihoods,
        "letters": letters,
        "yes": yes,
        "pairs": pairs,
        "experts": experts,
    }
    missing = [name for name in ways if name not in results["done"]]
    if missing:
        model = Model(a.model, *load_decoder(a.model))
        for name in missing:
            save(name, ways[name](model, rows))
    if a.reward_model:
        judge = local_judge(a.reward_model, SCORE, 192, 96)
        scores = own(rows, judge([r.prompt for r in rows], padded(rows)).values)
        most = max(len(r.answers) for r in rows)
        whole = np.asarray([s for s in scores if len(s) == most])
        results["best_of"] = best_of_curve(whole, np.eye(1, most).repeat(len(whole), 0))
        save("reward model", {"reward model": scores})
    print(table(results))


if __name__ == "__main__":
    main()
