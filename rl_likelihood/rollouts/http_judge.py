"""A judge at an HTTP address. A row without a readable verdict counts as a failure and has no number."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rl_likelihood.data.judged_text import Form, filled
from rl_likelihood.rollouts.endpoint import Endpoint, message_of
from rl_likelihood.rollouts.local_judge import Answers, Verdicts

# Words of less probability say nothing: 'yes' alone among the listed tokens, with a log-prob of -17, is noise.
LEAST_MASS = 0.01


class HttpJudge:
    """Gives each row of text its expected value over the form's words (`probability`)."""

    def __init__(self, endpoint: Endpoint, form: Form) -> None:
        self.endpoint, self.form = endpoint, form

    def __call__(self, questions: Sequence[str], answers: Answers) -> Verdicts:
        """The number of each row. Rows with equal text are sent once."""
        rows = [filled(self.form, q, row) for q, group in zip(questions, answers, strict=True) for row in group]
        replies = self.endpoint.ask(
            [one_token(text) for text in rows], lambda reply: probability(reply, self.form.words)
        )
        values = np.array([math.nan if x is None else x for x in replies], np.float32).reshape(len(questions), -1)
        return Verdicts(values, np.isfinite(values), 0)

    def cancel(self) -> None:
        """From any thread: ends the calls of `ask`, whose rows then have no verdict."""
        self.endpoint.cancel()

    def close(self) -> None:
        """Closes the connections."""
        self.endpoint.close()


def one_token(text: str) -> dict[str, Any]:
    """A request for one token and its likeliest alternatives."""
    message = {"role": "user", "content": text}
    return {"messages": [message], "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}


def text_of(reply: Any) -> str | None:
    """The text of a chat reply, or None."""
    text = message_of(reply).get("content")
    return text if isinstance(text, str) else None


def probability(reply: Any, words: Sequence[str]) -> float | None:
    """The expected value of the reply, where the first word is worth 1, the last 0, and the others lie evenly between.
    With two words it is P(first word).

    It comes from the log-probs of the reply's first token. Without log-probs, or if the words together have less than
    LEAST_MASS, it comes from the text. None if no word occurs there, or several.
    """
    try:
        choice = reply["choices"][0]
    except (TypeError, KeyError, IndexError):
        return None
    if not isinstance(choice, dict):
        return None
    worth = dict(zip(words, np.linspace(1, 0, len(words)).tolist(), strict=True))
    mass = dict.fromkeys(words, 0.0)
    for token, logp in _top(choice):
        if token in mass:
            mass[token] += math.exp(logp)
    total = sum(mass.values())
    if total >= LEAST_MASS:
        return sum(worth[word] * p for word, p in mass.items()) / total
    text = text_of(reply) or ""
    words_in_text = [w for w in words if re.search(rf"\b{re.escape(w)}\b", text.casefold())]
    return worth[words_in_text[0]] if len(words_in_text) == 1 else None


def _top(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """(token, log-prob) of the likeliest first tokens; [] if they are missing or invalid."""
    try:
        entries = choice["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(e["token"]).strip().casefold(), float(e["logprob"])) for e in entries]
    except (TypeError, KeyError, IndexError, ValueError):
        return []
    legal = all(not math.isnan(logp) and logp <= 1e-3 for _, logp in pairs)
    return [(token, min(logp, 0.0)) for token, logp in pairs] if legal else []
