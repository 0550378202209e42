"""RARO's game (2511.21667): the policy itself is the critic. It reads pairs of an expert's answer and one of its own,
writes a chain and says which one is the expert's. One update trains both tasks.

A pair is a question in the run's own format, whose reference answer is the number of the expert's answer. So the
sampler and the learner treat it as any question. In the batch, each question is followed by its G pairs and by as many
pairs with earlier answers (`Config.prompts_per_question`). G chains are sampled for each.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from rl_likelihood.data import judged_text, prompts
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.grading import graders
from rl_likelihood.learner.adversarial import NAME, REPLAYED
from rl_likelihood.model.architecture import Params
from rl_likelihood.rewards.adversarial import VERDICTS, verdict_of, verdict_rewards
from rl_likelihood.rollouts.batches import Batches, same_width
from rl_likelihood.rollouts.experts import Experts, Pairs
from rl_likelihood.rollouts.host_rewards import host_rewards, sampled_texts
from rl_likelihood.rollouts.resample import Drawn
from rl_likelihood.sampler import decode
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Example
from rl_likelihood.task import CRITIC, Task


def with_critic(b: Batches, drawn: Drawn, weights: Params) -> Drawn:
    """The drawn questions, each followed by its critic's prompts, with the rewards of both. `texts` and `logged` stay
    those of the questions. It samples as many prompts at a time as there are questions."""
    task, c = b.task, b.task.config
    assert isinstance(b.judge, Experts) and drawn.texts is not None
    answers = [[graders.extract_answer(text, task.fmt) for text in group] for group in drawn.texts]
    seen = bool(b.judge.seen)  # before `pairs` adds to it
    pairs = b.judge.pairs(drawn.rows, answers)
    columns, cut = _encoded(task, b.judge, drawn.rows, pairs)
    parts, verdicts = [drawn], []
    for j, rows in enumerate(columns):
        uid = drawn.rollout.prompts.uid * len(columns) + j
        asked = task.collate(rows, uid, c.judge.max_prompt + c.judge.max_row)
        rollout = decode.sample(weights, asked, task.key(CRITIC), task.sampler())
        texts = sampled_texts(task, rollout)
        parts.append(Drawn(rollout, rows, host_rewards(task, b.pool, rollout, rows, texts), texts))
        verdicts.append([[verdict_of(graders.extract_answer(text, task.fmt)) for text in group] for group in texts])
    verdict, a = np.stack(verdicts, 1), c.adversarial
    critic, policy = verdict_rewards(verdict, pairs.expert, a.tau_critic, a.tau_policy)
    group = c.sampler.group_size
    rewards = np.concatenate([policy[:, None, :group], critic], 1).astype(np.float32)  # [P, questions and pairs, G]
    logged = drawn.graded.logged | measured(verdict, pairs.expert, group, seen)
    logged |= {"judge/cut": float(cut), "grader/failures": sum(d.graded.logged["grader/failures"] for d in parts)}
    seconds = sum(part.rollout.seconds for part in parts)
    return _joined(parts, rewards, logged, task.fmt.pad_id, seconds)


def _encoded(
    task: Task, experts: Experts, rows: list[EncodedExample], pairs: Pairs
) -> tuple[list[list[EncodedExample]], int]:
    """(the critic's prompts [Q][P], the number of cut pairs)."""
    reader, (p, q) = experts.reader, pairs.expert.shape
    judged, cut = judged_text.encode(reader, [x for x, _ in pairs.shown], [[pair] for _, pair in pairs.shown])
    verdicts = [Example("critic", "", verdict) for verdict in VERDICTS[:2]]
    answer = prompts.answer_ids(verdicts, task.tokenizer, task.config.prompt, task.fmt)

    def encoded(i: int, j: int) -> EncodedExample:
        k, number = i * q + j, int(pairs.expert[i, j])
        parts = judged.prompt[k, : judged.prompt_length[k]], judged.rows[k, 0, : judged.row_length[k, 0]]
        text = judged_text.filled(reader.form, *pairs.shown[k])
        example = Example(f"{rows[i].example.id}/critic{j}", text, str(number))
        return EncodedExample(example, np.concatenate(parts), *answer[number - 1])

    return [[encoded(i, j) for i in range(p)] for j in range(q)], cut


def _joined(parts: list[Drawn], rewards: np.ndarray, logged: dict[str, float], pad_id: int, seconds: float) -> Drawn:
    """The questions and their critic's prompts as one batch. `rewards` [P, Q, G]; rows with NaN are dropped."""

    def joined(*x):
        return np.stack(x, 1).reshape(-1, *x[0].shape[1:])

    one = {"version": parts[0].rollout.version, "number": parts[0].rollout.number, "seconds": seconds}
    rollouts = [rollout.replace(**one) for rollout in same_width([d.rollout for d in parts], pad_id)]
    rewards = rewards.reshape(-1, rewards.shape[-1])
    values = {k: joined(*(d.graded.values[k] for d in parts)) for k in parts[0].graded.values}
    values[NAME] = np.nan_to_num(rewards)
    keep = joined(*(d.graded.keep for d in parts)) & np.isfinite(rewards)
    rows = [row for group in zip(*(d.rows for d in parts), strict=True) for row in group]
    graded = parts[0].graded._replace(values=values, keep=keep, logged=logged)
    return Drawn(jax.tree.map(joined, *rollouts), rows, graded, parts[0].texts)


def measured(verdict: np.ndarray, expert: np.ndarray, fresh: int, seen: bool = True) -> dict[str, float]:
    """Metrics of verdicts [P, Q, G], of which the first `fresh` of Q are about new answers. A tie is half right. The
    others are about earlier answers if any were `seen`."""

    def mean(values: np.ndarray, read: np.ndarray) -> float:
        return float(values[read].mean()) if read.any() else math.nan

    right, read = (verdict == expert[..., None]) + 0.5 * (verdict == 3), verdict > 0
    new, old = np.s_[:, :fresh], np.s_[:, fresh:]
    out = {
        "critic/accuracy": mean(right[new], read[new]),
        "critic/tie": mean(verdict[new] == 3, read[new]),
        "critic/first_bias": mean((verdict[new] == 1) - 1.0 * (verdict[new] == 2), read[new]),
        "critic/unparsable": 1 - float(read.mean()),
    }
    if fresh < verdict.shape[1]:
        out[REPLAYED] = mean(right[old], read[old]) if seen else math.nan
    return out


def roles(c: Config, questions: int) -> dict[str, np.ndarray]:
    """The fields `weight` and `critic` of a batch. The policy's questions have 1 - adversarial.critic_share of the
    loss, the critic's prompts the other part, of which earlier answers have adversarial.replay_share."""
    a, n, group = c.adversarial, c.prompts_per_question, c.sampler.group_size
    old = a.replay_share if n > 1 + group else 0.0
    shares = [
        1 - a.critic_share,
        *[a.critic_share * (1 - old) / group] * group,
        *[a.critic_share * old / group] * (n - 1 - group),
    ]
    weight = np.tile(n * np.asarray(shares, np.float32), questions)
    return {"weight": weight, "critic": np.tile(np.arange(n) > 0, questions)}
