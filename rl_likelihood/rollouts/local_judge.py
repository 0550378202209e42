"""A judge that this process computes: a model that replies with one of some words, or a reward model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from rl_likelihood.data import judged_text, tokenizer
from rl_likelihood.data.judged_text import JUDGE, Form, Names, Reader
from rl_likelihood.errors import UserError
from rl_likelihood.learner.judge import Judge, JudgeParams, ValueHead, make_judge
from rl_likelihood.model.architecture import ModelConfig, Params
from rl_likelihood.runtime import checkpoint
from rl_likelihood.runtime.workdir import kept_date, tokenizer_path
from rl_likelihood.shapes import Judged
from rl_likelihood.task import load_tokenizer
from rl_likelihood.weights import assets, files

Answers = Sequence[Sequence[Sequence[str | None]]]  # [P][Q][answers in a row]
AT_ONCE = 8  # questions per batch of a local judge
HEAD = "reward_head.npz"  # in a reward model's workdir or exported folder: weight, bias, spread


class Verdicts(NamedTuple):
    """`values` [P, Q]: the number of each row. `keep` [P, Q]: rows with a number. `cut`: how many rows were cut."""

    values: np.ndarray
    keep: np.ndarray
    cut: int


@dataclasses.dataclass(frozen=True)
class LocalJudge:
    """Gives rows of text their numbers. `run(params, judged)` is jitted. `at_once`: questions per batch."""

    reader: Reader
    judge: Judge
    params: JudgeParams
    run: Callable[[JudgeParams, Judged], jax.Array] = dataclasses.field(repr=False)
    at_once: int = AT_ONCE

    def whitened(self, spread: float) -> LocalJudge:
        """The judge with its scores divided by `spread`, which `load_head` returns."""
        judge = dataclasses.replace(self.judge, spread=spread)
        return dataclasses.replace(self, judge=judge, run=make_judge(judge))

    def __call__(self, questions: Sequence[str], answers: Answers) -> Verdicts:
        """The number of each row. Every question must have the same number of rows."""
        values, keep, cut = zip(*self.batches(questions, answers), strict=True)
        return Verdicts(np.concatenate(values), np.concatenate(keep), sum(cut))

    def batches(self, questions: Sequence[str], answers: Answers) -> Iterator[Verdicts]:
        """The numbers of the rows, a batch of questions at a time."""
        for start in range(0, len(questions), self.at_once):
            part = slice(start, start + self.at_once)
            encoded = judged_text.encode(self.reader, questions[part], answers[part])
            missing = self.at_once - len(encoded.judged.prompt) if start else 0
            judged = jax.tree.map(lambda x, n=missing: np.concatenate([x, x[:1].repeat(n, 0)]), encoded.judged.narrow)
            numbers = np.asarray(self.run(self.params, judged))[: len(encoded.judged.prompt)]
            yield Verdicts(numbers, np.isfinite(numbers), encoded.cut)


def describe_decoder(path: str, field: str = JUDGE.model) -> tuple[ModelConfig, str]:
    """(the model, its tokenizer's path) for a model's name, a folder, a .gguf file or a run's workdir. Reads no
    weights. `field`: the setting that names it, for messages."""
    if (Path(path) / checkpoint.FOLDER).is_dir():
        model, _, tokenizer_at, _ = checkpoint.describe(path)
        return model, tokenizer_path(Path(path), tokenizer_at)
    resolved = str(_resolved(path, field).resolve())
    return files.describe(resolved), resolved


def _resolved(path: str, field: str) -> Path:
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", path) and not Path(path).exists():
        raise UserError(f"{field} is {path!r}, which is no path; an address begins with http:// or https://")
    return assets.resolve(path, field)


def load_decoder(path: str) -> tuple[ModelConfig, Params]:
    """(the model as a judge runs it, its parameters on the host)."""
    if (Path(path) / checkpoint.FOLDER).is_dir():
        model, params = checkpoint.restore_params(path)[:2]
    else:
        model, params = files.load(assets.resolve(path).resolve(), classifier=True)
    return as_judge(model, jax.default_backend()), params


def load_head(path: str | Path, field: str = JUDGE.model) -> tuple[ValueHead, float] | None:
    """(the value head, the spread of its scores) of a reward model's workdir or of a sequence classifier (whose spread
    is taken as 1); None for any other model."""
    file = Path(path) / HEAD
    if not file.is_file():
        if checkpoint.latest_step(path) is not None:  # another run: its config.json does not describe a model
            return None
        score = files.score_of(path if Path(path).exists() else _resolved(str(path), field))
        return None if score is None else (ValueHead(score, np.float32(0)), 1.0)
    try:
        with np.load(file) as stored:
            head, spread = ValueHead(stored["weight"], stored["bias"]), float(stored["spread"])
            step = int(stored["step"])
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{file}: cannot be read ({e}); run reward_model with --evaluate, or export again") from e
    latest = checkpoint.latest_step(path)
    if latest not in (None, step):
        raise UserError(
            f"{file} is of step {step}, but the newest checkpoint of step {latest}; run reward_model with --evaluate"
        )
    return head, spread


def save_head(path: str | Path, head: ValueHead, spread: float, step: int = 0) -> None:
    """Writes the file that `load_head` reads. `step`: of the checkpoint that the head belongs to."""
    weight, bias = np.asarray(head.weight), np.asarray(head.bias)
    np.savez(Path(path) / HEAD, weight=weight, bias=bias, spread=np.float32(spread), step=step)


def as_judge(model: ModelConfig, platform: str) -> ModelConfig:
    """The model, with the settings with which a judge runs it."""
    on_cpu = platform == "cpu"
    dtype = "float32" if on_cpu else "bfloat16"
    return dataclasses.replace(model, compute_dtype=dtype, scan_layers=not on_cpu, attention="dense", remat="none")


def reader_of(
    path: str, form: Form, max_prompt: int, max_row: int, template: str = "model", names: Names = JUDGE
) -> tuple[Reader, ModelConfig]:
    """(the reader, the architecture) of the model at `path`. It refuses everything that can be refused without weights.

    A reward model (a folder with a value head) always scores one answer, whatever `form` is. In its workdir is the date
    that its template prints.
    """
    model, tokenizer_at = describe_decoder(path, names.model)
    if load_head(path, names.model) is not None:
        form = judged_text.SCORE._replace(date=kept_date(Path(path)) or form.date)
    text, _ = load_tokenizer(tokenizer_at, template, names.template)
    reader = Reader(text, tokenizer.vocab_bytes(text, model.vocab_size), form, max_prompt, max_row, names)
    judged_text.refuse_template(reader, model.max_position)
    judged_text.words_of(reader)
    return reader, model


def local_judge(
    path: str, form: Form, max_prompt: int, max_row: int, template: str = "model", names: Names = JUDGE
) -> LocalJudge:
    """The judge of the model at `path` (`reader_of`), with its weights. A reward model's scores are as its head says
    them."""
    reader, _ = reader_of(path, form, max_prompt, max_row, template, names)
    head, words = load_head(path), judged_text.words_of(reader)
    model, params = load_decoder(path)
    judge = Judge("judge", model, words) if head is None else Judge("reward_model", model)
    return LocalJudge(reader, judge, JudgeParams(params, None if head is None else head[0]), make_judge(judge))
