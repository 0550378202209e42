"""Settings of the commands that make chains for answers that exist (`rl_likelihood/search`)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rl_likelihood.fields import field


@dataclasses.dataclass(frozen=True)
class ReerSettings:
    """The search for a chain behind each training answer (`python -m rl_likelihood.reer`, docs/writing.md)."""

    candidates: int = field(2, "K: candidates for each segment of a chain; 0: keep the first chain", least=0)
    max_segments: int = field(10, "segments that get candidates, from the first", least=1)
    clip: float = field(2.0, "each token's NLL counts up to this", above=0)
    stop: float = field(0.25, "a mean NLL below this ends a question's search", least=0)
    score_from: Literal["second_segment", "start"] = field(
        "second_segment", "what of an answer is scored; of one without blank lines or line ends it is all"
    )
    min_chain: int = field(100, "minimum tokens of a first chain", least=0)
    max_copied: float = field(
        0.2, "maximum share of a chain's words that one run copied from the answer may have", least=0
    )
    temperature: float = field(0.8, "of first chains and candidates", least=0)
    max_segment: int = field(256, "sampled tokens of a candidate at most", least=1)
    ask: Literal["edit", "resample"] = field(
        "edit",
        "edit: the model reads the chain and rewrites a marked part; resample: it goes on from before the part, for "
        "small models",
    )
    prompts: str = field("", "a folder with other prompts: first.txt and edit.txt; empty: those of search/prompts")
    proposer: str = field(
        "", "another model that writes chains and candidates, or an address; empty: the model that scores them"
    )
    proposer_name: str = field("", "the model's name at that address")
    other: str = field("", "a model that takes no part in the search and scores its chains in the end; empty: none")
    controls: bool = field(True, "also search on another answer, with copying, and among whole chains")


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """Chains of a teacher (`python -m rl_likelihood.distill`). Key, caps and deadlines of an address are those of
    judge."""

    teacher: str = field("", "a model as in model.path, or an address that speaks OpenAI's chat protocol")
    name: str = field("", "the model's name at that address")
    replies: int = field(1, "replies to each question", least=1)
    temperature: float = field(0.7, "the teacher's sampling temperature", least=0)
    max_new: int = field(2048, "maximum tokens of a reply", least=1)
    accept: Literal["grader", "likelihood"] = field(
        "grader", "grader: the answer is right by eval.grader; likelihood: the chain makes the reference likelier"
    )
