"""A judge that is computed here: a model that says which of two words it would reply, or a reward model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rl_likelihood.data import judged_text, tokenizer
from rl_likelihood.data.judged_text import Form, Reader
from rl_likelihood.learner.judge import Judge, JudgeParams, ValueHead, make_judge
from rl_likelihood.model.decoder import ModelConfig, Params
from rl_likelihood.runtime import checkpoint
from rl_likelihood.runtime.workdir import tokenizer_path
from rl_likelihood.shapes import Judged, UserError
from rl_likelihood.task import load_tokenizer
from rl_likelihood.weights import assets, files

Answers = Sequence[Sequence[Sequence[str | None]]]  # [P][Q]: the answers of one row
AT_ONCE = 8  # questions of one call of a local judge
HEAD = "reward_head.npz"  # in a reward model's workdir or exported folder: weight, bias, spread


class Verdicts(NamedTuple):
    """A number for each row, which rows have one, and how many were cut."""

    values: np.ndarray
    keep: np.ndarray
    cut: int


@dataclasses.dataclass(frozen=True)
class LocalJudge:
    """Reads text and says numbers. `run(params, judged)` is jitted; `at_once`: questions of one call."""

    reader: Reader
    judge: Judge
    params: JudgeParams
    run: Callable[[JudgeParams, Judged], jax.Array] = dataclasses.field(repr=False)
    at_once: int = AT_ONCE

    def unscaled(self) -> LocalJudge:
        """The judge whose scores are those of its head."""
        judge = dataclasses.replace(self.judge, spread=1.0)
        return dataclasses.replace(self, judge=judge, run=make_judge(judge))

    def __call__(self, questions: Sequence[str], answers: Answers) -> Verdicts:
        """The number of every row, a batch of questions at a time. Every question has equally many rows."""
        values, cut = [], 0
        for start in range(0, len(questions), self.at_once):
            part = slice(start, start + self.at_once)
            encoded = judged_text.encode(self.reader, questions[part], answers[part])
            missing = self.at_once - len(encoded.judged.prompt) if start else 0
            judged = jax.tree.map(lambda x, n=missing: np.concatenate([x, x[:1].repeat(n, 0)]), encoded.judged)
            values.append(np.asarray(self.run(self.params, judged))[: len(encoded.judged.prompt)])
            cut += encoded.cut
        numbers = np.concatenate(values)
        return Verdicts(numbers, np.isfinite(numbers), cut)


def describe_decoder(path: str) -> tuple[ModelConfig, str]:
    """The model and its tokenizer's path, of a name, a folder, a .gguf file or a run's workdir. Reads no weights."""
    if (Path(path) / checkpoint.FOLDER).is_dir():
        model, _, at, _ = checkpoint.describe(path)
        return model, tokenizer_path(Path(path), at)
    found = str(assets.resolve(path).resolve())
    return files.describe(found), found


def load_decoder(path: str) -> tuple[ModelConfig, Params]:
    """The model and its parameters, on the host."""
    if (Path(path) / checkpoint.FOLDER).is_dir():
        return checkpoint.restore_params(path)[:2]
    return files.load(assets.resolve(path).resolve(), classifier=True)


def load_head(path: str) -> tuple[ValueHead, float] | None:
    """The value head of a reward model, a run's or a sequence classifier's, and the spread of its scores (1 where it is
    not known); None for any other model."""
    file = Path(path) / HEAD
    if not file.is_file():
        score = files.score_of(path if Path(path).exists() else assets.resolve(path))
        return None if score is None else (ValueHead(score, np.float32(0)), 1.0)
    try:
        with np.load(file) as stored:
            head, spread = ValueHead(stored["weight"], stored["bias"]), float(stored["spread"])
            step = int(stored["step"])
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{file}: cannot be read ({e}); train the reward model again") from e
    latest = checkpoint.latest_step(path)
    if latest not in (None, step):
        raise UserError(
            f"{file} is of step {step}, but the newest checkpoint of step {latest}; run reward_model with --evaluate"
        )
    return head, spread


def on_device(judge: LocalJudge, device: Any) -> LocalJudge:
    """The judge with its parameters on one device, where all of it is computed: no other thread's program waits."""
    return dataclasses.replace(judge, params=jax.device_put(judge.params, device))


def save_head(path: str | Path, head: ValueHead, spread: float, step: int = 0) -> None:
    """What `load_head` reads. `step`: that of the checkpoint beside it."""
    weight, bias = np.asarray(head.weight), np.asarray(head.bias)
    np.savez(Path(path) / HEAD, weight=weight, bias=bias, spread=np.float32(spread), step=step)


def as_judge(model: ModelConfig, platform: str) -> ModelConfig:
    """The model with how a judge runs it."""
    on_cpu = platform == "cpu"
    dtype = "float32" if on_cpu else "bfloat16"
    return dataclasses.replace(model, compute_dtype=dtype, scan_layers=not on_cpu, attention="dense", remat="none")


def reader_of(
    path: str, form: Form, max_prompt: int, max_row: int, template: str = "model", setting: str = "judge."
) -> tuple[Reader, ModelConfig]:
    """How the model at a path reads, and its shape: all of a judge that can be refused without its weights. A reward
    model (a folder with a value head) scores one answer, whatever `form`. `setting`: what stands before max_prompt and
    max_row where the user sets them."""
    model, at = describe_decoder(path)
    if load_head(path) is not None:
        form = judged_text.SCORE
    if max_prompt + max_row > model.max_position:
        raise UserError(
            f"{setting}max_prompt + {setting}max_row = {max_prompt + max_row}, more than the {model.max_position} "
            "positions of the judge; lower one"
        )
    text, _ = load_tokenizer(at, template)
    reader = Reader(text, tokenizer.vocab_bytes(text, model.vocab_size), form, max_prompt, max_row, setting)
    judged_text.refuse_template(reader)
    judged_text.words_of(reader)
    return reader, model


def local_judge(
    path: str, form: Form, max_prompt: int, max_row: int, template: str = "model", setting: str = "judge."
) -> LocalJudge:
    """A judge from a model's path (`reader_of`)."""
    reader, _ = reader_of(path, form, max_prompt, max_row, template, setting)
    head, words = load_head(path), judged_text.words_of(reader)
    model, params = load_decoder(path)
    model = as_judge(model, jax.default_backend())
    judge = Judge("judge", model, words) if head is None else Judge("reward_model", model, spread=head[1])
    return LocalJudge(reader, judge, JudgeParams(params, None if head is None else head[0]), make_judge(judge))
