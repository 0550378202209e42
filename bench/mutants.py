"""Do the tests notice a wrong program? Each mutant is one small change of the package; some test must fail on it.

    python -m bench.mutants [--only=TEXT] [--list] [--timeout=600]

Mutants are applied one at a time in a temporary copy of the repository, where the tests named beside them run until one
fails. A mutant that survives is a missing test, or a change without effect: explain it, or add the test. A mutant whose
old text is not exactly once in its file is an error: the list must follow the code.

Measured at 2b0119f: the 18 mutants whose tests are slow in whole or in part. All were killed, and their tests pass
without them. The other 73 were not run again; earlier commits say that they were killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """Replace `old` by `new` in `file` (of rl_likelihood/); `tests` are pytest's arguments (under tests/)."""

    file: str
    old: str
    new: str
    tests: str


SURROGATE, STEP, REWARDED = "learner/test_surrogate.py", "learner/test_step.py", "learner/test_rewards_in_step.py"
POLICY_LOSS = "learner/test_policy_loss.py"
EVALUATE, STATISTICS = "evaluation/test_evaluate.py", "evaluation/test_statistics.py"
BATCHES, POSTERIOR = "rollouts/test_batches.py", "learner/test_posterior.py"
OWN_FILES = "datasets/test_own_files.py"
ANSWERS = "grading/test_mathematics.py -k nothing_else"
CHOICES = "grading/test_graders.py grading/test_choice.py -k 'choice or named or numeric'"

MUTANTS = [
    # learner: the surrogate
    Mutant("learner/surrogate.py", "return jnp.where(std > MIN_STD, scaled, 0.0)", "return scaled", SURROGATE),
    Mutant("learner/surrogate.py", "return differences * n", "return differences * (n - 1)", SURROGATE),
    Mutant("learner/surrogate.py", "usable = keep & (keep.sum(-1, keepdims=True) > 1)", "usable = keep", SURROGATE),
    Mutant("learner/surrogate.py", "jnp.clip(values / jnp.maximum(std, MIN_STD), -1, 1)", "values / std", SURROGATE),
    Mutant(
        "learner/surrogate.py",
        "rows = rows / jnp.maximum(mask.sum(-1), 1)",
        "rows = rows / mask.shape[-1]",
        f"{POLICY_LOSS} -k length_aggregation",
    ),
    Mutant(
        "learner/surrogate.py",
        "jnp.minimum(ratio * a, jnp.clip",
        "jnp.maximum(ratio * a, jnp.clip",
        f"{POLICY_LOSS} -k clip_acts",
    ),
    Mutant(
        "learner/surrogate.py",
        "jax.lax.stop_gradient(weight) * a * logp",
        "weight * a * logp",
        f"{POLICY_LOSS} -k truncated_and_constant",
    ),
    Mutant(
        "learner/surrogate.py", "return 0.5 * d * d", "return d * d", f"{POLICY_LOSS} -k 'kl_edges or kl_estimates'"
    ),
    # learner: chains from a second prompt
    Mutant(
        "learner/posterior.py",
        "jnp.where(from_prompt, others, total",
        "jnp.where(from_prompt, total / n, total",
        POSTERIOR,
    ),
    Mutant("learner/posterior.py", "jnp.where(usable, w * (reward", "jnp.where(usable, (reward", POSTERIOR),
    Mutant(
        "learner/posterior.py",
        "return jax.lax.stop_gradient(jnp.minimum(w, cfg",
        "return (jnp.minimum(w, cfg",
        POSTERIOR,
    ),
    # learner: rows, the step and what it measures
    Mutant(
        "learner/step.py",
        "prompts=jnp.maximum(by_weight(keep.any(-1), batch.weight).sum(), 1).astype(jnp.float32)",
        "prompts=jnp.float32(p)",
        f"{STEP} -k as_if_it_were_not",
    ),
    Mutant(
        "learner/step.py", "loss.answer_term * answer", "answer", f"{REWARDED} {STEP} -k 'two_terms or plain_sequences'"
    ),
    Mutant("learner/step.py", "v.max(0) if k.startswith", "v.sum(0) if k.startswith", f"{STEP} -k mean_what"),
    Mutant(
        "learner/step.py", "return -cfg.loss.kl_coef *", "return cfg.loss.kl_coef *", f"{REWARDED} -k kl_in_the_reward"
    ),
    Mutant("learner/measures.py", "std.sum() / groups", "std.mean()", f"{STEP} -k as_if_it_were_not"),
    Mutant(
        "learner/measures.py", '["reward/log_prob"] - per_row', '["reward/log_prob"] + per_row', f"{REWARDED} -k gain"
    ),
    Mutant("learner/measures.py", 'sums["sum/ratio"] ** 2 /', 'sums["sum/ratio"] /', f"{STEP} -k mean_what"),
    Mutant("learner/measures.py", "stats.entropy, 0).sum()", "stats.entropy, 0).max()", f"{STEP} -k mean_what"),
    Mutant(
        "learner/rows.py",
        "jnp.where(sampled, jnp.float32(1 / cfg",
        "jnp.where(True, jnp.float32(1 / cfg",
        f"{STEP} -k score",
    ),
    Mutant("learner/rows.py", "batch.keep & ~batch.truncated if", "batch.keep if", f"{STEP} -k plain_sequences"),
    Mutant(
        "learner/observation.py", "jnp.where(batch.truncated[..., None], cfg", "jnp.where(True, cfg", f"{STEP} -k floor"
    ),
    Mutant("learner/rows.py", "tokens |= batch.segment == SAMPLED", "pass", f"{STEP} -k plain_sequences"),
    Mutant("learner/optimizer.py", "cfg.lr / (warmup + 1)", "cfg.lr / warmup", "learner/test_optimizer.py -k warm_up"),
    Mutant("learner/optimizer.py", 'and not k.endswith("bias")', "", "learner/test_optimizer.py -k adamw_by_hand"),
    # rewards
    Mutant(
        "rewards/likelihood.py",
        "multiples = jnp.round(tokens / unit) * unit",
        "multiples = 0 * tokens",
        f"{SURROGATE} -k five_digits",
    ),
    Mutant(
        "rewards/likelihood.py",
        "return jnp.where(x < 1, near, far)",
        "return far",
        f"{SURROGATE} -k 'closed_form or first_order or five_digits'",
    ),
    Mutant(
        "rewards/likelihood.py",
        "return jnp.where(x < 1, near, far)",
        "return near",
        f"{SURROGATE} -k 'closed_form or first_order or five_digits'",
    ),
    Mutant(
        "rewards/likelihood.py",
        "near = jnp.exp(y) * jnp.expm1(jnp.minimum(x - y, 1.0))",
        "near = jnp.exp(x) - jnp.exp(y)",
        f"{SURROGATE} learner/test_precision.py -k 'five_digits or lengths or differences_keep'",
    ),
    Mutant("rewards/likelihood.py", "-1, where=keep)", "-1)", "rewards/test_likelihood.py"),
    Mutant(
        "rewards/likelihood.py",
        "return probability(avg_log_prob(logp, mask))",
        "return probability(log_prob(logp, mask))",
        "rewards/test_likelihood.py",
    ),
    Mutant(
        "rewards/reward_sum.py",
        "above = stop(rows_above(t, observation, cfg))",
        "above = rows[t.name]",
        f"{SURROGATE} learner/test_precision.py -k 'sum_of_terms or differences_keep or standard_deviation'",
    ),
    Mutant("rewards/table.py", "> 0) & observation.keep", "> 0)", f"{REWARDED} -k nover"),
    Mutant(
        "rewards/table.py",
        "tokens = observation.policy.mask.sum(-1)",
        "tokens = observation.chain_tokens",
        f"{REWARDED} -k overlong",
    ),
    Mutant("rewards/shaping.py", "return jnp.where(cut, -1.0, penalty)", "return penalty", "rewards/test_shaping.py"),
    Mutant("rewards/shaping.py", "jnp.maximum(m - 1, 1)", "jnp.maximum(m, 1)", "rewards/test_shaping.py"),
    Mutant(
        "rewards/group_filter.py",
        "jnp.asarray(step) >= cfg.start",
        "jnp.asarray(step) > cfg.start",
        "rewards/test_group_filter.py",
    ),
    Mutant(
        "rewards/intrinsic.py",
        "return _mean(-stats.entropy",
        "return _mean(stats.entropy",
        "rewards/test_intrinsic.py -k by_hand",
    ),
    Mutant(
        "rewards/rules.py",
        "if max(counts.values(), default=0) >= 10",
        "if max(counts.values(), default=0) > 10",
        "rewards/test_rules.py -k repetition",
    ),
    # model
    Mutant(
        "model/head.py",
        "z = z if scale is None else z * scale[..., None, None]",
        "z = z",
        "model/test_head.py -k temperature",
    ),
    Mutant("model/head.py", "(d if scale is None else d * over(scale))", "d", "model/test_head.py -k temperature"),
    Mutant(
        "model/head.py", "mean_z if scale is None else mean_z * scale", "mean_z", "model/test_head.py -k temperature"
    ),
    Mutant("model/head.py", "+ (top - new) * total)", ")", "model/test_head.py"),
    Mutant("model/attention.py", "(shared[..., None, :] | own)", "True", "model/test_attention.py"),
    Mutant(
        "model/attention.py",
        "return before + jnp.where(shared, 0, index - start)",
        "return jnp.broadcast_to(index, segment.shape)",
        "model/test_attention.py",
    ),
    Mutant("model/rope.py", "smooth + (1 - smooth) / s.factor", "1 / s.factor", "model/test_decoder.py"),
    Mutant("model/decoding.py", "<= index, (*token", "< index, (*token", "sampler/test_engine.py -k whatever"),
    # sampler
    Mutant(
        "sampler/draw.py",
        "e = jnp.exp(scale * (z - top))",
        "e = jnp.exp(z - top)",
        "sampler/test_decode.py -k 'bfloat16 or models'",
    ),
    Mutant(
        "sampler/draw.py",
        "(scale * (jnp.take_along_axis",
        "(1 * (jnp.take_along_axis",
        "sampler/test_decode.py -k bfloat16",
    ),
    Mutant(
        "sampler/draw.py",
        "> u[..., None] * total",
        ">= u[..., None] * total",
        "sampler/test_decode.py -k 'edges or mass'",
    ),
    Mutant(
        "sampler/decode.py",
        "(state == matched) | (token[..., None] == eos).any(-1)",
        "(state == matched)",
        "sampler/test_decode.py -k loop_ends",
    ),
    Mutant("sampler/engine.py", "| (token[..., None] == ends.eos).any(-1)", "", "sampler/test_engine.py -k 'slots'"),
    Mutant(
        "sampler/engine.py", "age < s.count[..., None]", "age <= s.count[..., None]", "sampler/test_engine.py -k slots"
    ),
    Mutant("sampler/engine.py", "starts.first + first_chain", "starts.first", "sampler/test_engine.py -k any_index"),
    Mutant(
        "sampler/decode.py",
        "request.first_chain + first_row",
        "request.first_chain",
        "sampler/test_engine.py -k one_program",
    ),
    Mutant("sampler/decode.py", "| (opened > cfg.max_chain)", "", "sampler/test_splice.py -k stands_between"),
    Mutant(
        "sampler/queue.py", "step - rollout.version <= self", "step - rollout.version < self", "sampler/test_queue.py"
    ),
    Mutant(
        "rollouts/asynchronous.py",
        "start + dropped + len(waiting)",
        "start + dropped",
        f"{BATCHES} -k waiting",
    ),
    Mutant("rollouts/batches.py", '("grader/failures", "env', '("env', f"{BATCHES} -k counts_are_summed"),
    # checkpoints
    Mutant(
        "runtime/checkpoint.py",
        "check_sums(checksums(_named(state)), leaves)",
        "pass",
        "runtime/test_checkpoint.py -k passed_over",
    ),
    Mutant(
        "runtime/checkpoint.py",
        "_check_shapes(path, _named(abstract_state), leaves)",
        "pass",
        "runtime/test_checkpoint.py -k another_models",
    ),
    Mutant(
        "runtime/disk.py",
        "marked + t.keep_checkpoints + best + writing",
        "marked + t.keep_checkpoints + best",
        "runtime/test_disk.py -k at_one_time",
    ),
    Mutant("runtime/disk.py", "math.lcm(every, t.keep_every)", "t.keep_every", "runtime/test_disk.py -k one_time"),
    # the run's data
    Mutant("datasets/questions.py", "key=hash_of)", "key=lambda k: groups[k][0].id)", f"{OWN_FILES} -k do_not_move"),
    Mutant(
        "datasets/sources.py",
        "without(rows, {group_key(row) for row in held}",
        "without(rows, set()",
        f"{OWN_FILES} -k test_question",
    ),
    Mutant(
        "data/prompt_checks.py", "e.answer, e.chain, *(", "e.answer, *(", "data/test_prompts_refused.py -k bad_rows"
    ),
    # graders
    Mutant("grading/values.py", "return KINK_POINTS", "return range(POINTS)", ANSWERS),
    Mutant("grading/values.py", "len(ratios) < 2 or any(x != y for x, y in zeros)", "len(ratios) < 2", ANSWERS),
    Mutant("grading/values.py", "_zero(first * y - x * other,", "_zero(0 * first * y,", ANSWERS),
    Mutant("grading/numeric.py", "return [Fraction(n, 2) for n in order]", "return [Fraction(1)] * 17", ANSWERS),
    Mutant("grading/statements.py", 'math.gcd(*map(int, text.split(":"))) > 1', "True", ANSWERS),
    Mutant("grading/compare.py", "letter = is_reference and", "letter = False and", ANSWERS),
    Mutant("grading/compare.py", "if len(references) != len(answer):", "if False:", ANSWERS),
    Mutant("grading/tree.py", "fits = sum(angles) == 1 and", "fits = any(angles) and", ANSWERS),
    Mutant("grading/units.py", " and left[0] != unit", "", ANSWERS),
    Mutant("grading/names.py", "simple and len(set(terms)) == len(terms)", "simple", ANSWERS),
    Mutant("grading/names.py", "answers and names not in (sorted(names), _SPHERICAL)", "False", ANSWERS),
    Mutant("grading/text.py", "if _STATED.search(m[0]) else None", "", CHOICES),
    Mutant(
        "grading/text.py", "(value, 100 * value) if goal_percent else (value", "(value, 100 * value, value", CHOICES
    ),
    Mutant(
        "grading/countdown.py",
        "given[0] == target and sorted(given[1]) == sorted(numbers)",
        "given[0] == target",
        "grading/test_countdown.py",
    ),
    # meshes
    Mutant(
        "mesh.py",
        'axes = ("data", "rows" if np.ndim(x) > 1 and not of_prompts else None)',
        "axes = (None, None)",
        "test_mesh.py",
    ),
    # evaluation
    Mutant("evaluation/evaluate.py", "rollout = without_sampled(", "without_sampled(", f"{EVALUATE} -k plain"),
    Mutant("learner/rows.py", "jnp.argsort(~scored", "jnp.argsort(scored", f"{EVALUATE} -k plain"),
    Mutant("evaluation/evaluate.py", "task.key(EVALUATE, 1)", "task.key(EVALUATE)", f"{EVALUATE} -k keys"),
    Mutant("evaluation/evaluate.py", "e.task.key(EVALUATE), sampler", "e.task.key(0), sampler", f"{EVALUATE} -k keys"),
    Mutant("evaluation/evaluate.py", "(kinds == CHAIN) | (kinds == TAG)", "kinds == CHAIN", f"{EVALUATE} -k plain"),
    Mutant("evaluation/evaluate.py", "[previous, *own[:-1]], own[-1]", "own, own[-1]", f"{EVALUATE} -k plain"),
    Mutant("evaluation/statistics.py", "(logp > no_chain[:, None])", "(logp >= no_chain[:, None])", STATISTICS),
    Mutant("evaluation/statistics.py", "logp.mean(1) - swapped", "swapped - logp.mean(1)", STATISTICS),
    # where batches come from
    Mutant(
        "rollouts/batches.py",
        "weights, prompts, self.task.key(SAMPLE)",
        "weights, prompts, self.task.key(2)",
        f"{BATCHES} -k keys",
    ),
    Mutant("rollouts/batches.py", "v[:, :n] for k, v", "v[:, -n:] for k, v", f"{BATCHES} -k trained_on"),
    Mutant("sampler/queue.py", "return self.dropped > dropped", "return False", "sampler/test_queue.py -k made_up"),
]


def copied(folder: Path) -> None:
    """The repository's files, committed or not."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("experiments/results"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def selection(mutant: Mutant) -> list[str]:
    """pytest's arguments for the mutant's tests: slow ones only if -k names them."""
    files, _, names = mutant.tests.partition(" -k ")
    return [f"tests/{name}" for name in files.split()] + (["-k", names.strip("'")] if names else ["-m", "not slow"])


def outcome(mutant: Mutant, folder: Path, timeout: float) -> str:
    """Whether some test fails on the mutant. A run out of time says nothing: the machine may be busy."""
    file = folder / "rl_likelihood" / mutant.file
    text = file.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.file}: {mutant.old!r} is there {text.count(mutant.old)} times, not once")
    file.write_text(text.replace(mutant.old, mutant.new))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection(mutant)]
    # Programs that a mutant does not change are compiled once for all.
    environment = os.environ | {"PYTHONPATH": str(folder), "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    try:
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "NO END"
    finally:
        file.write_text(text)
    if run.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}:\n{run.stdout.decode()[-2000:]}")
    return "killed" if run.returncode else "SURVIVED"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--only", default="", help="mutants whose file, texts or tests contain this")
    arguments.add_argument("--list", action="store_true")
    arguments.add_argument("--timeout", type=float, default=600)
    args = arguments.parse_args()
    chosen = [m for m in MUTANTS if any(args.only in text for text in m)]
    killed = 0
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        if not args.list:
            copied(Path(folder))
        for mutant in chosen:
            word = "" if args.list else outcome(mutant, Path(folder), args.timeout)
            killed += word == "killed"
            print(f"{word:9}{mutant.file}: {mutant.old!r} -> {mutant.new!r}", flush=True)
    if not args.list:
        print(f"{killed} of {len(chosen)} killed")
        sys.exit(killed < len(chosen))


if __name__ == "__main__":
    main()
