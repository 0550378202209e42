"""Vectors of texts by a decoder, and the reward `similar_share`: EMPO (2504.05812) with clusters of similar answers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rl_likelihood.data import tokenizer
from rl_likelihood.data.order import in_batches
from rl_likelihood.data.retrieval import Embed, unit
from rl_likelihood.data.token_ids import ids_of, padded
from rl_likelihood.grading.graders import numeric_match
from rl_likelihood.learner.judge import mean_state
from rl_likelihood.model.architecture import ModelConfig, Params
from rl_likelihood.rewards import rules
from rl_likelihood.rollouts.local_judge import Verdicts, describe_decoder, load_decoder
from rl_likelihood.task import load_tokenizer

WIDTHS = 64  # texts are padded to a multiple of this, because each width is compiled once
MOST_EMBEDDED = 256  # maximum tokens of a text that are embedded
AT_ONCE = 8  # texts per batch
CENTRE = 256  # reference answers whose mean vector is subtracted

_mean_state = jax.jit(mean_state, static_argnums=1)


def decoder_vectors(
    model: ModelConfig, params: Params, encode: Callable[[Sequence[str]], list[list[int]]], texts: Sequence[str]
) -> np.ndarray:
    """Embeddings [n, D] of texts: `mean_state` of their first MOST_EMBEDDED tokens."""
    rows = [ids[:MOST_EMBEDDED] for ids in encode(texts)]
    width = -(-max(1, *map(len, rows)) // WIDTHS) * WIDTHS
    out = []
    for _, part in in_batches(rows, AT_ONCE):
        length = np.asarray([len(ids) for ids in part], np.int32)
        out.append(np.asarray(_mean_state(params, model, padded(part, width), length)))
    return np.concatenate(out)[: len(rows)]


@dataclasses.dataclass(frozen=True)
class SimilarAnswers:
    """Gives each answer the share of its group in the same cluster. An answer joins the first cluster whose first
    answer is similar: the cosine of their vectors, less `centre`, is at least `cosine`."""

    embed: Embed
    centre: np.ndarray
    cosine: float

    def __call__(
        self, references: Sequence[str], answers: Sequence[Sequence[str | None]]
    ) -> tuple[Verdicts, dict[str, float]]:
        """(a number for each answer [P, G], 0 for None; metrics that compare the clusters with the references)."""
        texts = list(dict.fromkeys(a for group in answers for a in group if a is not None))
        vectors = list(unit(self.embed(texts) - self.centre)) if texts else []
        vector_of = dict(zip(texts, vectors, strict=True))
        clusters = [self._clusters(group, vector_of) for group in answers]
        mixed = []
        for reference, group, names in zip(references, answers, clusters, strict=True):
            right = [numeric_match(reference, answer) for answer in group]
            pairs = itertools.combinations(zip(names, right, strict=True), 2)
            mixed += [one != other for (name, one), (same, other) in pairs if name is not None and name == same]
        values = rules.vote_share(clusters)
        return Verdicts(values, np.ones(values.shape, bool), 0), {"vote/mixed_pairs": sum(mixed) / max(len(mixed), 1)}

    def _clusters(self, group: Sequence[str | None], vector_of: Mapping[str, np.ndarray]) -> list[str | None]:
        """The first answer of each answer's cluster."""
        firsts: dict[str, np.ndarray] = {}
        out: list[str | None] = []
        for answer in group:
            if answer is None:
                out.append(None)
                continue
            own = vector_of[answer]
            near = (first for first, x in firsts.items() if first == answer or x @ own >= self.cosine)
            first = next(near, answer)
            firsts[first] = vector_of[first]
            out.append(first)
        return out


def similar_answers(path: str, device: Any, references: Sequence[str], cosine: float) -> SimilarAnswers:
    """Compares answers by the vectors of the model at `path`. The mean vector of some reference answers is subtracted,
    because what all texts have in common does not distinguish them."""
    _, tokenizer_at = describe_decoder(path)
    text, _ = load_tokenizer(tokenizer_at, "plain")
    model, params = load_decoder(path)
    params = jax.device_put(params, device)
    vocab = tokenizer.vocab_bytes(text, model.vocab_size)
    encode = lambda texts: ids_of(text, vocab, list(texts), plain=True)
    embed = functools.partial(decoder_vectors, model, params, encode)
    return SimilarAnswers(embed, embed(references[:CENTRE]).mean(0), cosine)
