"""Settings of the commands that make chains for answers that exist (`rl_likelihood/search`)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rl_likelihood.fields import field


@dataclasses.dataclass(frozen=True)
class ReerSettings:
    """The search for a chain behind each training answer (`python -m rl_likelihood.reer`, docs/writing.md)."""

    candidates: int = field(2, "candidates per segment of a chain; 0: keep the first chain", least=0)
    max_segments: int = field(10, "maximum segments that get candidates, from the first", least=1)
    clip: float = field(2.0, "clip of each token's NLL", above=0)
    stop: float = field(0.25, "a mean NLL below this ends a question's search", least=0)
    score_from: Literal["second_segment", "start"] = field(
        "second_segment", "which part of an answer is scored; all of it if it has one segment"
    )
    min_chain: int = field(100, "minimum tokens of the first chain", least=0)
    max_copied: float = field(
        0.2,
        "maximum of the longest run of words that chain and answer share, divided by the answer's number of words",
        least=0,
    )
    temperature: float = field(0.8, "sampling temperature of first chains and candidates", zero_or=1e-3, most=1e3)
    top_p: float = field(
        0.85, "first chains and candidates: sample from the smallest set of ids with this probability", above=0, most=1
    )
    max_segment: int = field(
        256, "maximum sampled tokens of a candidate, with ask=edit also of the analysis before it", least=1
    )
    ask: Literal["edit", "resample"] = field(
        "edit",
        "edit: the model reads the chain and rewrites a marked part; resample: it continues from before the part, for "
        "small models",
    )
    prompts: str = field("", "a folder with other prompts: first.txt and edit.txt; empty: those of search/prompts")
    proposer: str = field(
        "", "another model, or a server, that writes chains and candidates; empty: the model that scores them"
    )
    proposer_name: str = field("", "the model's name on that server")
    other: str = field("", "a model that only scores the final chains; empty: none")
    controls: bool = field(True, "also run the controls: another answer, copying allowed, whole chains")


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """Chains of a teacher (`python -m rl_likelihood.distill`). Key, caps and deadlines of an address are those of
    judge."""

    teacher: str = field("", "a model as in model.path, or a server that speaks OpenAI's chat protocol")
    name: str = field("", "the model's name on that server")
    replies: int = field(1, "replies to each question", least=1)
    temperature: float = field(0.7, "the teacher's sampling temperature", zero_or=1e-3, most=1e3)
    max_new: int = field(2048, "maximum tokens of a reply", least=1)
    accept: Literal["grader", "likelihood"] = field(
        "grader", "grader: eval.grader calls the answer right; likelihood: the chain makes the reference more likely"
    )
