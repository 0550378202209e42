"""Rollouts of conversations: the sampler writes the model's messages, and environments on this host reply.

All rows of a batch advance together: the sampler writes a message for each row, then every environment replies.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rl_likelihood.data.conversation import Markup, markup, reference_ids
from rl_likelihood.data.prompts import EncodedExample, completion_ids
from rl_likelihood.data.token_ids import ids_after_text, padded
from rl_likelihood.envs.calls import Style, message
from rl_likelihood.envs.deadline import Failed, in_time
from rl_likelihood.envs.protocol import ENDS, End, Environment, Reply, Start, number_of, problem_of
from rl_likelihood.errors import UserError
from rl_likelihood.grading.calls import call_of
from rl_likelihood.model.architecture import Params
from rl_likelihood.runtime.console import say
from rl_likelihood.sampler import turns
from rl_likelihood.sampler.decode import SamplerConfig, request_of
from rl_likelihood.sampler.draw import Request
from rl_likelihood.sampler.turns import TurnPrefix
from rl_likelihood.shapes import CHAIN, ENV, REFERENCE, TAG, Example, Outcomes, Prompts, Rollout
from rl_likelihood.tables import environment_of
from rl_likelihood.task import Task

NO_STOP = np.zeros((1, 1), np.int8)  # a stop table without stop strings: only an end-of-sequence id ends a message


@dataclasses.dataclass
class Conversation:
    """One row in progress: its ids so far, and the environment's state. `reward` and `calls_f1`, if the environment has
    it, are of a finished one."""

    state: Any
    ids: list[int] = dataclasses.field(default_factory=list)
    kinds: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] = dataclasses.field(default_factory=list)
    end: End = ""
    turns: int = 0
    calls: int = 0
    bad: int = 0
    failed: bool = False
    reward: float = 0.0
    calls_f1: float | None = None

    def add(self, ids: np.ndarray, kind: int, logp: np.ndarray | None = None) -> None:
        """Appends ids [n] of one segment kind (shapes.py), with their log-probs [n] (nats) if they were sampled."""
        self.ids += ids.tolist()
        self.kinds += [kind] * len(ids)
        self.logp += [0.0] * len(ids) if logp is None else logp.tolist()

    @property
    def going(self) -> bool:
        return not self.end and not self.failed


class Conversations:
    """Runs conversations between the model and the task's environment."""

    def __init__(self, task: Task) -> None:
        c = task.config
        self.task = task
        self.environment: Environment = environment_of(c.env)
        self.seconds = c.env.seconds
        self._reported: set[str] = set()
        self.markup: Markup = markup(task.tokenizer, task.fmt, c.sampler.max_env_tokens)

    def sample(
        self, weights: Params, prompts: Prompts, rows: list[EncodedExample], key: jax.Array, cfg: SamplerConfig
    ) -> Rollout:
        """A conversation for each of the G rows of every prompt. `cfg.slots`: conversations that run at the same time
        (`turns.at_once`). A row's ids do not depend on it."""
        start, g = time.perf_counter(), cfg.group_size
        new_conversations = iter(self.begin([row for row in rows for _ in range(g)]))
        played = [[next(new_conversations) for _ in range(g)] for _ in rows]
        p_step, g_step = turns.at_once(len(rows), g, cfg.slots, mesh_of(weights))
        for i in range(0, len(rows), p_step):
            for j in range(0, g, g_step):
                part = [group[j : j + g_step] for group in played[i : i + p_step]]
                part_prompts = jax.tree.map(lambda x, i=i: x[i : i + p_step], prompts)
                self._play(weights, request_of(part_prompts, key, cfg, NO_STOP, range(j, j + len(part[0]))), part, cfg)
        seconds = time.perf_counter() - start
        return self.rollout(prompts, played, cfg.width_multiple).replace(seconds=seconds)

    def begin(self, rows: Sequence[EncodedExample]) -> list[Conversation]:
        """A new conversation for each row, before its first message."""
        start_of = lambda row: lambda: self.environment.start(task_of(row))
        started = self._asked("start", [start_of(row) for row in rows], functools.partial(problem_of, kind=Start))
        out = []
        for start in started:
            conversation = Conversation(None, failed=True) if start is None else Conversation(start.state)
            if start is not None:
                self._refer(conversation, start.reference)
            out.append(conversation)
        return out

    def _asked(
        self, method: str, calls: Sequence[Callable[[], Any]], problem: Callable[[Any], str] = lambda result: ""
    ) -> list[Any]:
        """The result of each call to a method of the environment, or None if it failed or has a `problem`. An object
        reports each kind of failure of a method once."""
        results = in_time(calls, self.seconds, problem)
        for failed in (result for result in results if isinstance(result, Failed)):
            kind = f"{method} {failed.kind}"  # its words may differ in every conversation
            if kind not in self._reported:
                self._reported.add(kind)
                say(
                    f"warning: the environment {self.task.config.env.name} failed in its method {method} "
                    f"({failed.why}); such conversations are left out"
                )
        return [None if isinstance(result, Failed) else result for result in results]

    def _play(self, weights: Params, request: Request, played: list[list[Conversation]], cfg: SamplerConfig) -> None:
        mesh = mesh_of(weights)
        flat = [conversation for group in played for conversation in group]
        shape = len(played), len(played[0])
        settings = turns.TurnSettings(cfg.model, cfg.max_chain, mesh)
        rows, replies = turns.start_rows(weights, cfg.model, request, mesh), [np.zeros(0, np.int32)] * len(flat)
        for turn in range(self.task.config.sampler.max_turns):
            going = np.asarray([conversation.going for conversation in flat])
            if not going.any():
                break
            count = np.asarray([len(reply) for reply in replies], np.int32)
            ids = padded(replies, int(count.max()))
            prefix = TurnPrefix(ids.reshape(*shape, -1), count.reshape(shape), going.reshape(shape))
            rows, written = turns.take_turn(weights, rows, prefix, request, settings, say_compiled)
            ids, logp, length = (np.asarray(x).reshape(len(flat), *x.shape[2:]) for x in written)
            spoken = []
            for k in np.flatnonzero(going):
                flat[k].add(ids[k, : length[k]], CHAIN, logp[k, : length[k]])
                spoken.append((flat[k], ids[k, : length[k]]))
            last = turn + 1 == self.task.config.sampler.max_turns
            reply_ids = iter(self.reply(spoken, last))
            replies = [next(reply_ids) if g else np.zeros(0, np.int32) for g in going]
        for conversation in flat:
            if conversation.going:
                conversation.end = "out_of_turns"

    def given(self, row: EncodedExample) -> Conversation:
        """The conversation with the messages of the row's chain and the environment's real replies to them."""
        (conversation,) = self.begin([row])
        conversation = dataclasses.replace(conversation, ids=[], kinds=[], logp=[])  # drops the reference ids
        texts = texts_of(row.example, self.task.config.env.style)[: self.task.config.sampler.max_turns]
        for i, text in enumerate(texts):
            if not conversation.going:
                break
            (spoken,) = ids_after_text(self.task.tokenizer, self.task.fmt.vocab_bytes, [text])
            ids = np.asarray([*spoken, self.task.fmt.eos_ids[0]], np.int32)
            conversation.add(ids, CHAIN)
            self.reply([(conversation, ids)], last=i + 1 == len(texts), refer=False)
        if conversation.failed:
            raise UserError(f"the environment fails in the conversation of row {row.example.id}; mend its chain")
        return conversation

    def reply(
        self, messages: Sequence[tuple[Conversation, np.ndarray]], last: bool, refer: bool = True
    ) -> list[np.ndarray]:
        """The environment's replies [e] to messages [n]. Each reply is added to its conversation, and with `refer` also
        the reference for the next message. A reply is empty after the end, or if the message was the `last` one
        allowed."""
        text_of = self.task.tokenizer.decode
        eos = self.task.fmt.eos_ids
        texts = [text_of(ids[:-1] if len(ids) and ids[-1] in eos else ids) for _, ids in messages]
        step = self.environment.step
        calls = [lambda c=c, t=t: step(c.state, t) for (c, _), t in zip(messages, texts, strict=True)]
        out = []
        replies = self._asked("step", calls, functools.partial(problem_of, kind=Reply))
        for (conversation, ids), reply in zip(messages, replies, strict=True):
            conversation.turns += 1
            conversation.failed = reply is None
            reply_ids = np.zeros(0, np.int32)
            if reply is not None:
                conversation.calls += reply.calls
                conversation.bad += len(reply.bad)
                conversation.end = reply.end
                if not reply.end and not last:
                    reply_ids = self.markup.reply(reply.text, ids, self.task.config.sampler.max_env_tokens)
                    conversation.add(reply_ids, ENV)
                    self._refer(conversation, reply.reference if refer else "")
            out.append(reply_ids)
        return out

    def _refer(self, conversation: Conversation, text: str) -> None:
        task = self.task
        ids = reference_ids(task.tokenizer, task.fmt, text, task.config.prompt.max_answer)
        conversation.add(ids, REFERENCE)

    def rollout(self, prompts: Prompts, played: list[list[Conversation]], multiple: int) -> Rollout:
        """A rollout of finished conversations. Its width is the longest row, rounded up to a `multiple`, or with 0 the
        maximum."""
        width = self.task.config.conversation_tokens
        if multiple:
            longest = max(len(row.ids) for group in played for row in group)
            width = -(-max(1, longest) // multiple) * multiple

        def array(values: Callable[[Conversation], Sequence], fill: float, kind: type) -> np.ndarray:
            out: np.ndarray = np.full((len(played), len(played[0]), width), fill, kind)
            for i, group in enumerate(played):
                for j, row in enumerate(group):
                    out[i, j, : len(row.ids)] = values(row)
            return out

        def per_row(value: Callable[[Conversation], Any], kind: type) -> np.ndarray:
            return np.asarray([[value(row) for row in group] for group in played], kind)

        self._pay([row for group in played for row in group])
        return Rollout(
            prompts,
            array(lambda row: row.ids, self.task.fmt.pad_id, np.int32),
            array(lambda row: row.kinds, 0, np.int32),
            array(lambda row: row.logp, 0, np.float32),
            truncated=per_row(lambda row: row.end == "out_of_turns", bool),
            outcomes=Outcomes(
                reward=per_row(lambda row: row.reward, np.float32),
                calls_f1=per_row(lambda row: row.calls_f1, np.float32),
                end=per_row(lambda row: ENDS.index(row.end), np.int32),
                turns=per_row(lambda row: row.turns, np.int32),
                calls=per_row(lambda row: row.calls, np.int32),
                bad_calls=per_row(lambda row: row.bad, np.int32),
                failed=per_row(lambda row: row.failed, bool),
            ),
        )

    def _pay(self, played: Sequence[Conversation]) -> None:
        """Gets the rewards of finished conversations from the environment."""
        reward, f1 = self.environment.reward, getattr(self.environment, "calls_f1", None)
        ran = [row for row in played if not row.failed]
        f1_of = lambda row: None if f1 is None else number_of(f1(row.state), "calls_f1")
        calls = [lambda row=row: (number_of(reward(row.state, row.end)), f1_of(row)) for row in ran]
        for row, scores in zip(ran, self._asked("reward", calls), strict=True):
            row.failed = scores is None
            row.reward, row.calls_f1 = scores or (0.0, None)


@functools.cache
def say_compiled(earlier: int, reply: int, sampled: int, shape: Hashable) -> None:
    """Says once for each shape that a turn is compiled, which takes minutes on an accelerator."""
    say(f"compiles a turn: {earlier:,} earlier positions, {reply:,} of a reply, {sampled:,} of a message")


def mesh_of(weights: Params) -> Mesh | None:
    """The mesh on which the sampler's weights are; None if they are on one device."""
    return getattr(weights["embed"].sharding, "mesh", None)


def messages_of(task: Task, rollout: Rollout, i: int, j: int) -> list[dict[str, str]]:
    """Row j of prompt i as messages: {"role": assistant or environment, "text"}."""
    ids, kinds = rollout.completion[i, j], rollout.segment[i, j]
    spoken = (kinds == CHAIN) | (kinds == ENV)
    ids, kinds = ids[spoken], kinds[spoken]
    ends = np.flatnonzero(np.diff(kinds, append=-1)) + 1
    text_of = functools.partial(task.tokenizer.decode, skip_special_tokens=True)
    shown = markup(task.tokenizer, task.fmt, task.config.sampler.max_env_tokens).text_of
    return [
        {
            "role": "assistant" if kinds[start] == CHAIN else "environment",
            "text": (text_of if kinds[start] == CHAIN else shown)(ids[start:end]).strip(),
        }
        for start, end in zip([0, *ends[:-1]], ends, strict=False)  # no message: the environment could not start
    ]


def written_by_model(messages: Sequence[dict[str, str]]) -> str:
    """What the model wrote in a conversation, as one text."""
    return " | ".join(m["text"] for m in messages if m["role"] == "assistant")


def task_of(row: EncodedExample) -> dict[str, Any]:
    """The question's field `environment`, which the environment gets."""
    return json.loads(row.example.check)["environment"]


def texts_of(example: Example, style: Style) -> list[str]:
    """The messages of an example's chain: JSON, a list of {"calls": [{"name", "arguments"}], "thought": text}."""
    try:
        messages = json.loads(example.chain)
        if not all(m.keys() <= {"calls", "thought"} and isinstance(m.get("thought", ""), str) for m in messages):
            raise ValueError("a message has calls and a thought, which is text")
        texts = [message([call_of(call) for call in m["calls"]], style, m.get("thought", "")) for m in messages]
        if not "".join(texts).encode():
            raise ValueError("it has no message")
        return texts
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"the chain of row {example.id} is no conversation ({type(e).__name__}: {e}); write a JSON list of "
            '{"calls": [{"name": ..., "arguments": {...}}]}'
        ) from e


def say_longer(task: Task, rows: Sequence[EncodedExample]) -> None:
    """Names the given conversations of which only the beginning is learned. UserError for one that is unreadable."""
    most, style = task.config.sampler.max_turns, task.config.env.style
    longer = [row.example.id for row in rows if len(texts_of(row.example, style)) > most]
    if longer:
        first = ", ".join(longer[:3]) + (", ..." if len(longer) > 3 else "")
        say(
            f"warning: {len(longer)} of {len(rows)} given conversations have more than sampler.max_turns = {most} "
            f"messages ({first}); only their first {most} are learned"
        )


def conversations_of(task: Task) -> Conversations | None:
    """`Conversations` for a task with an environment, else None."""
    return Conversations(task) if task.config.converses else None


def targets_of(
    task: Task, rows: Sequence[EncodedExample], conversations: Conversations | None, learn_tags: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The targets of supervised training, as (ids, segments) for each row: chain and answer, or a conversation. With
    `learn_tags` the closing tags are marked as chain."""
    if conversations is None:
        targets = [completion_ids(row, row.example.chain, task.tokenizer, task.fmt) for row in rows]
        return [(ids, np.where((kinds == TAG) & learn_tags, CHAIN, kinds)) for ids, kinds in targets]
    limit = task.config.spoken_tokens
    played = [conversations.given(row) for row in rows]
    return [(np.asarray(c.ids[:limit], np.int32), np.asarray(c.kinds[:limit], np.int32)) for c in played]
