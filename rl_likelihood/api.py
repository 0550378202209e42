"""Train and load runs, sample and score, from a notebook or script.

    from rl_likelihood import api

    config = api.config("configs/tiny.py:steps=40", {"optim.lr": 1e-3})
    run = api.train(config, "runs/first")
    run.metrics.plot(y="reward/mean")
    api.generate(run, ["3 + 4"], samples=2)
    api.score(run, "3 + 4", chain="3 and 4 more is 7.", answer="7")

docs/python.md explains it.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rl_likelihood.cli.command import quiet_start, refuse_address
from rl_likelihood.config import apply_preset, build, flatten, from_file, no_field, tree
from rl_likelihood.data.prompts import EncodedExample, collate, completion_ids, encode_all
from rl_likelihood.errors import UserError
from rl_likelihood.grading.graders import extract_answer
from rl_likelihood.learner.batching import given_rollout, to_batch
from rl_likelihood.learner.step import make_score
from rl_likelihood.model.architecture import Params
from rl_likelihood.rewards.intrinsic import INTRINSIC, PolicyStats, in_base
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.rollouts.host_rewards import sampled_texts
from rl_likelihood.run_model import run_on
from rl_likelihood.runtime import bucket, checkpoint, run_files
from rl_likelihood.runtime.workdir import CONFIG, pinned_date, read_config
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import CHAIN, PAD, REFERENCE, Example
from rl_likelihood.task import EVALUATE, Task, checkpoint_model, load
from rl_likelihood.train import run as run_training

if TYPE_CHECKING:
    import pandas

quiet_start()  # XLA's flags and the cache of compiled programs, as the commands have them
_COPIES = contextlib.ExitStack()  # of runs in buckets
atexit.register(_COPIES.close)


def config(file: str = "", fields: dict[str, Any] | None = None) -> ConfigDict:
    """The config of `configs/NAME.py[:key=value,...]`, or the defaults. `fields` overrides some of its values.

    `fields` have the names of the command line, {"optim.lr": 1e-4}. A "preset" among them is applied first.
    """
    fields, c = fields or {}, from_file(file) if file else tree()
    known_fields = flatten(c)
    for name in fields:
        if name not in known_fields:
            raise UserError(no_field(name, known_fields))
    with c.ignore_type():  # `build` checks types, in the words of the command line
        c.update_from_flattened_dict(fields)
    apply_preset(c, list(fields))
    return c


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: its workdir, and the model of one of its checkpoints."""

    workdir: Path
    step: int
    task: Task
    params: Params

    def frame(self, name: str) -> pandas.DataFrame:
        """A JSON-lines file of the workdir as a table, indexed by step."""
        try:
            import pandas
        except ImportError as e:
            raise UserError("tables need pandas; run pip install -c constraints.txt -e '.[notebook]'") from e
        path = self.workdir / name
        table = pandas.DataFrame(run_files.read(path) if path.exists() else [])
        return table.set_index("step") if "step" in table else table

    @property
    def metrics(self) -> pandas.DataFrame:
        """metrics.jsonl: one row for each step (docs/metrics.md)."""
        return self.frame(run_files.METRICS)

    @property
    def evaluations(self) -> pandas.DataFrame:
        """eval.jsonl: one row for each evaluation."""
        return self.frame(run_files.EVAL)

    @property
    def samples(self) -> pandas.DataFrame:
        """samples.jsonl: sampled chains of training, with their rewards."""
        return self.frame(run_files.SAMPLES)

    @functools.cached_property
    def weights(self) -> Params:
        """The parameters in the sampler's layout."""
        return decode.prepare(self.params, self.task.model)

    def encoded(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Questions with their answers in ids, in the run's prompt format. Its built-in worked examples are those of
        its first held-out question, or of data.tasks if it has none."""
        c, task, limit = self.task.config, self.task, self.task.model.max_position
        if c.converses:
            raise UserError(f"env.name of this run is {c.env.name!r}; its conversations are for the command evaluate")
        wide = dataclasses.replace(c.prompt, max_prompt=limit, max_answer=limit)
        tasks = c.data.tasks if c.data.source == "reasoning_gym" else ()
        kind = [*(row.example.task for row in task.heldout), *tasks, ""][0]
        asked = [dataclasses.replace(example, task=kind) for example in examples]
        return encode_all(asked, task.tokenizer, wide, task.fmt)

    def refuse_longer(self, prompt: int, reply: int) -> None:
        """UserError if a prompt and a reply of so many tokens have more positions than the model."""
        limit = self.task.model.max_position
        if prompt + reply > limit:
            raise UserError(
                f"prompt and reply may have {prompt} + {reply} tokens, more than the model's {limit}; shorten them"
            )


def train(config: ConfigDict, workdir: str | Path, force: bool = False) -> Run:
    """Trains as `python -m rl_likelihood.train` does. The same workdir resumes."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"config is {config!r}; give what api.config returns")
    if not bucket.is_address(workdir):
        refuse_address("workdir", str(workdir))
    c = build(config)
    with bucket.opened(os.path.expanduser(workdir)) as (folder, copy):
        run_training(c, folder, force, copy)
    return load_run(folder)


def load_run(workdir: str | Path, step: int | None = None) -> Run:
    """The run in a workdir, with the model of one checkpoint (by default the newest). A run in a bucket is copied to a
    temporary folder, which Python deletes when it ends."""
    if not bucket.is_address(workdir):
        refuse_address("workdir", str(workdir))
    with contextlib.ExitStack() as copies:
        folder = copies.enter_context(bucket.copied(os.path.expanduser(workdir), step))
        run = _loaded(folder, step)
        _COPIES.enter_context(copies.pop_all())
    return run


def _loaded(workdir: Path, step: int | None) -> Run:
    c = tree()
    if not (workdir / CONFIG).exists():
        raise UserError(f"{workdir} holds no {CONFIG}; give the workdir of a run")
    saved = read_config(workdir)
    c.update_from_flattened_dict({name: value for name, value in saved.items() if name in flatten(c)})
    settings = build(c)
    described = checkpoint.describe(workdir)
    date = pinned_date(workdir, settings.prompt.date, described[-1])
    settings = dataclasses.replace(settings, prompt=dataclasses.replace(settings.prompt, date=date))
    saved_model = checkpoint_model(settings, workdir, *described[:3])
    task, _ = load(settings, training=False, saved_model=saved_model)
    model, params, step, _ = checkpoint.restore_params(workdir, step)
    model = run_on(model, settings, jax.default_backend())
    return Run(workdir, step, dataclasses.replace(task, model=model), jax.device_put(params))


@dataclasses.dataclass(frozen=True)
class Generated:
    """One sampled reply: its chain of thought, its answer (None if it has none), and its whole text."""

    chain: str
    answer: str | None
    text: str


def generate(
    run: Run, prompts: Sequence[str], samples: int = 0, seed: int = 0, max_chain: int = 0
) -> list[list[Generated]]:
    """For each prompt one greedy reply, then `samples` sampled replies with the run's settings in `eval`."""
    if isinstance(prompts, str):
        raise UserError(f"prompts is {prompts!r}; give a list of texts")
    for name, value in (("samples", samples), ("max_chain", max_chain)):
        if value < 0:
            raise UserError(f"{name} is {value}; it must be at least 0")
    if not len(prompts):
        return []
    task, c = run.task, run.task.config
    longest = max_chain or c.sampler.max_chain
    examples = [Example(f"prompt {i}", prompt, "0") for i, prompt in enumerate(prompts)]
    rows = run.encoded(examples)
    width = max(len(row.prompt_ids) for row in rows)
    cfg = task.eval_sampler(samples, width_multiple=0, max_chain=longest, max_sampled_answer=c.eval_answer)
    run.refuse_longer(width, cfg.max_sampled)
    collated = task.collate(rows, np.arange(len(rows)), width)
    key = jax.random.fold_in(task.key(EVALUATE), seed)
    rollout = decode.sample(run.weights, collated, key, cfg)

    def read(text: str) -> Generated:
        return Generated(task.fmt.chain_of(text).strip(), extract_answer(text, task.fmt), text)

    return [[read(text) for text in group] for group in sampled_texts(task, rollout)]


@dataclasses.dataclass(frozen=True)
class Score:
    """The likelihood of an answer after a chain: the log-prob (nats) of each token, and rewards.

    `chain`, `answer`: (token, log-prob) pairs. `rewards`: those in OBJECTIVES, over the scored tokens of the answer
    (prompt.score_delims), and those in INTRINSIC, over the tokens of the chain. `without_chain`: OBJECTIVES after an
    empty chain. A notebook shows it in colours.
    """

    chain: list[tuple[str, float]]
    answer: list[tuple[str, float]]
    rewards: dict[str, float]
    without_chain: dict[str, float]

    def _repr_html_(self) -> str:
        words = []
        for token, logp in [*self.chain, *self.answer]:
            hue = 120 * float(np.exp(logp))  # from red (impossible) to green (certain)
            style = f"background: hsl({hue:.0f} 80% 85%); color: black; white-space: pre-wrap"
            words.append(f'<span style="{style}" title="{logp:.3f} nats">{html.escape(token)}</span>')
        rows = "".join(
            f"<tr><td>{name}</td><td>{self.rewards[name]:.4g}</td><td>{value:.4g}</td></tr>"
            for name, value in self.without_chain.items()
        )
        head = "<tr><th>reward</th><th>after the chain</th><th>without it</th></tr>"
        return f"<div>{''.join(words)}</div><table>{head}{rows}</table>"


def score(run: Run, prompt: str, chain: str, answer: str) -> Score:
    """Scores a chain and a reference answer after it: their log-probs, and rewards.

    Missing are rewards with token weights (`nrt`, `r3`, `weighted_*`), with other answers (`log_prob_any`,
    `option_prob`), of a group, of the text (rules, graders), and of a second model.
    """
    task = run.task
    (row,) = run.encoded([Example("prompt", prompt, answer, chain)])
    targets = [completion_ids(row, text, task.tokenizer, task.fmt) for text in (chain, "")]
    width = max(len(ids) for ids, _ in targets)
    run.refuse_longer(len(row.prompt_ids), width)
    collated = collate([row, row], np.arange(2), len(row.prompt_ids), len(row.answer_ids), task.fmt.pad_id)
    batch = to_batch(given_rollout(collated, targets, task.fmt.pad_id, width))
    step = dataclasses.replace(task.config.step, two_branches=False, temperature=1.0, micro_batch_prompts=0)
    stats = make_score(task.model, step)(run.params, batch).stats
    logp, chain_mask = np.asarray(stats.log_prob)[:, 0], batch.segment == CHAIN

    def tokens(of_answer: bool) -> list[tuple[str, float]]:
        ids, kinds = targets[0]
        positions = np.flatnonzero((kinds == REFERENCE) == of_answer)
        return [(task.tokenizer.decode([ids[t]]), float(logp[0, t])) for t in positions if kinds[t] != PAD]

    def rewards(i: int) -> dict[str, float]:
        arguments = logp[i][None, None], np.asarray(batch.scored[i])[None], np.ones((1, 1), bool)
        return {name: float(objective(*arguments)[0]) for name, objective in OBJECTIVES.items()}

    sampled = PolicyStats(stats.log_prob, stats.entropy, stats.self_certainty, chain_mask, task.model.vocab_size)
    sampled = in_base(sampled, task.config.reward.entropy_base)
    of_chain = {name: float(reward(sampled)[0, 0]) for name, reward in INTRINSIC.items()}
    return Score(tokens(False), tokens(True), rewards(0) | of_chain, rewards(1))
