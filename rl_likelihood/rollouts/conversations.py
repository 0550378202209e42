"""Rollouts of conversations: the model's messages from the sampler, the environment's replies from this host.

All rows of a batch take their turns together: the sampler writes a message for each, then every environment replies.
"""

from __future__ import annotations

import dataclasses
import json
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from rl_likelihood.data.conversation import Markup, markup, reference_ids
from rl_likelihood.data.prompts import EncodedExample, completion_ids
from rl_likelihood.data.token_ids import ids_after_text
from rl_likelihood.envs.calls import Style, message
from rl_likelihood.envs.protocol import End, Environment, Reply
from rl_likelihood.envs.tools import Call
from rl_likelihood.model.decoder import Params
from rl_likelihood.runtime.console import say
from rl_likelihood.sampler import turns
from rl_likelihood.sampler.decode import SamplerConfig
from rl_likelihood.sampler.draw import Ends, Request
from rl_likelihood.sampler.turns import Given
from rl_likelihood.shapes import CHAIN, ENV, REFERENCE, Example, Outcomes, Prompts, Rollout, UserError
from rl_likelihood.tables import environment_table
from rl_likelihood.task import Task


@dataclasses.dataclass
class Conversation:
    """One row while it is played: its ids so far, and what the environment knows of it."""

    state: Any
    ids: list[int] = dataclasses.field(default_factory=list)
    kinds: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] = dataclasses.field(default_factory=list)
    end: End = ""
    turns: int = 0
    calls: int = 0
    bad: int = 0
    failed: bool = False

    def add(self, ids: Sequence[int], kind: int, logp: Sequence[float] | None = None) -> None:
        self.ids += map(int, ids)
        self.kinds += [kind] * len(ids)
        self.logp += map(float, [0.0] * len(ids) if logp is None else logp)

    @property
    def going(self) -> bool:
        return not self.end and not self.failed


class Conversations:
    """Plays conversations of a task's questions with its environment."""

    def __init__(self, task: Task) -> None:
        c = task.config
        self.task = task
        self.environment: Environment = environment_table(c.env.file)[c.env.name](c.env)
        self.seconds = c.env.seconds
        self.markup: Markup = markup(task.tokenizer, task.fmt, c.sampler.max_env_tokens)

    def sample(
        self, weights: Params, prompts: Prompts, rows: list[EncodedExample], key: jax.Array, cfg: SamplerConfig
    ) -> Rollout:
        """A conversation for each of the G rows of every prompt. `cfg.slots` conversations go on at one time (0: all);
        the ids of a row do not depend on how many."""
        g = cfg.group_size
        played = [[self.begin(row) for _ in range(g)] for row in rows]
        at_once = min(cfg.slots or len(rows) * g, len(rows) * g)
        p_step, g_step = max(1, at_once // g), min(at_once, g)
        for i in range(0, len(rows), p_step):
            for j in range(0, g, g_step):
                part = [group[j : j + g_step] for group in played[i : i + p_step]]
                of_part = jax.tree.map(lambda x, i=i: x[i : i + p_step], prompts)
                self._play(weights, request(of_part, key, cfg, j, len(part[0])), part, cfg)
        return self.rollout(prompts, played)

    def begin(self, row: EncodedExample) -> Conversation:
        """A conversation before its first message."""
        state, _, reference = self.environment.start(task_of(row))
        conversation = Conversation(state)
        self._refer(conversation, reference)
        return conversation

    def _play(self, weights: Params, request: Request, played: list[list[Conversation]], cfg: SamplerConfig) -> None:
        mesh = getattr(weights["embed"].sharding, "mesh", None)
        flat = [conversation for group in played for conversation in group]
        shape = len(played), len(played[0])
        rows, replies = turns.begin(weights, cfg.model, request, mesh), [np.zeros(0, np.int32)] * len(flat)
        for turn in range(self.task.config.sampler.max_turns):
            going = np.asarray([conversation.going for conversation in flat])
            if not going.any():
                break
            given = Given(*(x.reshape(*shape, *x.shape[1:]) for x in padded(replies)), going.reshape(shape))
            rows, written = turns.take_turn(weights, cfg.model, rows, given, request, cfg.max_chain, mesh)
            ids, logp, length = (np.asarray(x).reshape(len(flat), *x.shape[2:]) for x in written)
            spoken = []
            for k in np.flatnonzero(going):
                flat[k].add(ids[k, : length[k]], CHAIN, logp[k, : length[k]])
                spoken.append((flat[k], ids[k, : length[k]]))
            last = turn + 1 == self.task.config.sampler.max_turns
            answered = iter(self.reply(spoken, last))
            replies = [next(answered) if g else np.zeros(0, np.int32) for g in going]
        for conversation in flat:
            conversation.end = conversation.end or "out_of_turns"

    def given(self, row: EncodedExample) -> Conversation:
        """The conversation that the row's chain makes: its messages, with the environment's real replies."""
        conversation = Conversation(self.environment.start(task_of(row))[0])
        texts = written(row.example, self.task.config.env.style)
        for text in texts:
            (ids,) = ids_after_text(self.task.tokenizer, self.task.fmt.vocab_bytes, [text])
            ids = np.asarray([*ids, self.task.fmt.eos_ids[0]], np.int32)
            conversation.add(ids, CHAIN)
            self.reply([(conversation, ids)], last=text is texts[-1], refer=False)
            if not conversation.going:
                break
        return conversation

    def reply(
        self, messages: Sequence[tuple[Conversation, np.ndarray]], last: bool, refer: bool = True
    ) -> list[np.ndarray]:
        """The environment's replies [e] to the messages [n], which are added to their conversations; none after an end,
        nor where the message was the `last` that it may write. `refer`: then what should follow is added too."""
        text_of = self.task.tokenizer.decode
        eos = self.task.fmt.eos_ids
        texts = [text_of(ids[:-1] if len(ids) and ids[-1] in eos else ids) for _, ids in messages]
        step = self.environment.step
        calls = [lambda c=c, t=t: step(c.state, t) for (c, _), t in zip(messages, texts, strict=True)]
        out = []
        for (conversation, ids), reply in zip(messages, in_time(calls, self.seconds), strict=True):
            conversation.turns += 1
            given = np.zeros(0, np.int32)
            if isinstance(reply, Reply):
                conversation.calls += reply.calls
                conversation.bad += len(reply.bad)
                conversation.end = reply.end
                if not reply.end and not last:
                    given = self.markup.reply(reply.text, ids, self.task.config.sampler.max_env_tokens)
                    conversation.add(given, ENV)
                    self._refer(conversation, reply.reference if refer else "")
            else:
                conversation.failed = True
                say(f"warning: the environment failed ({reply}); the conversation is left out")
            out.append(given)
        return out

    def _refer(self, conversation: Conversation, text: str) -> None:
        task = self.task
        ids = reference_ids(task.tokenizer, task.fmt, text, task.config.prompt.max_answer)
        conversation.add(ids, REFERENCE)

    def rollout(self, prompts: Prompts, played: list[list[Conversation]]) -> Rollout:
        """The rows and outcomes of conversations that are over."""
        width = longest = max(len(row.ids) for group in played for row in group)
        if self.task.config.sampler.width_multiple:
            width = -(-longest // self.task.config.sampler.width_multiple) * self.task.config.sampler.width_multiple
        else:
            width = self.task.config.conversation_tokens

        def array(values: Callable[[Conversation], Sequence], fill: float, kind: type) -> np.ndarray:
            out = np.full((len(played), len(played[0]), width), fill, kind)
            for i, group in enumerate(played):
                for j, row in enumerate(group):
                    out[i, j, : len(row.ids)] = values(row)
            return out

        def each(value: Callable[[Conversation], Any], kind: type) -> np.ndarray:
            return np.asarray([[value(row) for row in group] for group in played], kind)

        rewards = self._rewards([row for group in played for row in group])
        f1 = getattr(self.environment, "calls_f1", lambda state: 0.0)
        return Rollout(
            prompts,
            array(lambda row: row.ids, self.task.fmt.pad_id, np.int32),
            array(lambda row: row.kinds, 0, np.int32),
            array(lambda row: row.logp, 0, np.float32),
            truncated=each(lambda row: row.end == "out_of_turns", bool),
            outcomes=Outcomes(
                reward=rewards.reshape(len(played), -1),
                calls_f1=each(lambda row: f1(row.state), np.float32),
                turns=each(lambda row: row.turns, np.int32),
                calls=each(lambda row: row.calls, np.int32),
                bad_calls=each(lambda row: row.bad, np.int32),
                failed=each(lambda row: row.failed, bool),
            ),
        )

    def _rewards(self, played: Sequence[Conversation]) -> np.ndarray:
        """The environment's rewards; 0 for a conversation that failed or whose reward cannot be had."""
        reward = self.environment.reward
        values = in_time([lambda row=row: float(reward(row.state, row.end)) for row in played], self.seconds)
        for row, value in zip(played, values, strict=True):
            row.failed |= not isinstance(value, float) or not np.isfinite(value)
        return np.asarray([0.0 if row.failed else v for row, v in zip(played, values, strict=True)], np.float32)


def messages_of(task: Task, rollout: Rollout, i: int, j: int) -> list[dict[str, str]]:
    """Row j of prompt i as messages: {"role": assistant or environment, "text"}."""
    ids, kinds = rollout.completion[i, j], rollout.segment[i, j]
    spoken = (kinds == CHAIN) | (kinds == ENV)
    ids, kinds = ids[spoken], kinds[spoken]
    ends = np.flatnonzero(np.diff(kinds, append=-1)) + 1
    return [
        {
            "role": "assistant" if kinds[start] == CHAIN else "environment",
            "text": task.tokenizer.decode(ids[start:end], skip_special_tokens=True).strip(),
        }
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
        if end > start
    ]


def task_of(row: EncodedExample) -> dict[str, Any]:
    """What the environment is told of a question."""
    return json.loads(row.example.check)["environment"]


def written(example: Example, style: Style) -> list[str]:
    """The messages of an example's chain: JSON, a list of {"calls": [{"name", "arguments"}], "thought": text}."""
    try:
        messages = json.loads(example.chain)
        return [
            message([Call(call["name"], call["arguments"]) for call in m["calls"]], style, m.get("thought", ""))
            for m in messages
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"the chain of row {example.id} is no conversation ({type(e).__name__}: {e}); write a JSON list of "
            '{"calls": [{"name": ..., "arguments": {...}}]}'
        ) from e


def targets_of(task: Task, rows: Sequence[EncodedExample]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, segments) that supervised training learns of the rows: their chains with answers, or conversations."""
    if not task.config.converses:
        return [completion_ids(row, row.example.chain, task.tokenizer, task.fmt) for row in rows]
    conversations, most = Conversations(task), task.config.conversation_tokens
    played = [conversations.given(row) for row in rows]
    return [(np.asarray(c.ids[:most], np.int32), np.asarray(c.kinds[:most], np.int32)) for c in played]


def request(prompts: Prompts, key: jax.Array, cfg: SamplerConfig, first: int, rows: int) -> Request:
    """Rows first, first + 1, ... of every prompt's group, each message up to an end-of-sequence id."""
    fmt, t = cfg.chain_format, cfg.temperature
    temperature = t[first : first + rows] if isinstance(t, tuple) else (t,) * rows
    return Request(
        prompts.tokens,
        prompts.length,
        prompts.uid,
        key,
        np.asarray(temperature, np.float32),
        Ends(np.zeros((1, 1), np.int8), np.asarray(fmt.eos_ids, np.int32)),
        np.int32(fmt.pad_id),
        np.int32(cfg.first_chain + first),
    )


def padded(ids: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(ids [N, E], how many [N]) of ragged ids."""
    out = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for k, row in enumerate(ids):
        out[k, : len(row)] = row
    return out, np.asarray(list(map(len, ids)), np.int32)


def in_time(calls: Iterable[Callable[[], Any]], seconds: float) -> list[Any]:
    """What each call returns, or, where it raises or takes longer, why not, as text.

    The calls run one after the other on a thread. Where one hangs, its thread is left alone, and the others go on.
    """
    waiting, results = list(calls), []
    while len(results) < len(waiting):
        done, left_alone = queue.SimpleQueue(), threading.Event()
        threading.Thread(target=_run, args=(waiting[len(results) :], done, left_alone), daemon=True).start()
        while len(results) < len(waiting) and not left_alone.is_set():
            try:
                results.append(done.get(timeout=seconds))
            except queue.Empty:
                left_alone.set()
                results.append(f"no reply within env.seconds = {seconds:g}")
    return results


def _run(calls: Sequence[Callable[[], Any]], done: queue.SimpleQueue, left_alone: threading.Event) -> None:
    for call in calls:
        if left_alone.is_set():  # the rest runs on another thread
            return
        try:
            done.put(call())
        except Exception as e:  # whatever a user's environment raises
            done.put(f"{type(e).__name__}: {e}")
