"""The settings of a run's data, and what was found in it."""

import dataclasses
from typing import Literal

from rl_likelihood.data.own_rows import Columns
from rl_likelihood.datasets.documents import DocumentConfig
from rl_likelihood.fields import field


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which questions a run has."""

    source: Literal["reasoning_gym", "files", "jsonl", "prepared", "documents"] = field(
        "reasoning_gym",
        "reasoning_gym: generated tasks; files: your own rows (jsonl is its old name); prepared: a folder that "
        "rl_likelihood.datasets.prepare wrote; documents: plain texts, cut into prompt and answer (docs/writing.md)",
    )
    tasks: tuple[str, ...] = field(
        ("basic_arithmetic",),
        'reasoning_gym: presets (docs/data.md lists them) or any of its data sets, as "leg_counting" or '
        '"leg_counting(min_animals=1)"',
    )
    train_path: str = field(
        "",
        "files: JSON lines, a JSON array, parquet, each also .gz, a folder or archive of such, or a data set of the "
        "Hugging Face hub, hf:owner/name[@revision][/folder]; prepared: the folder",
    )
    heldout_path: str = field("", "files: the held-out rows; empty: a split of train_path, or else some of its rows")
    train_split: str = field("", "which split to train on, if there are several; empty: train")
    heldout_split: str = field("", "the split to hold out; empty: validation if there is one, else test")
    fast_split: str = field("", "prepared: another split for the fast evaluations during training")
    prompt_column: str = field("prompt", "files: the field with the question, or with a conversation")
    answer_column: str = field("answer", "files: the field with the reference answer, text or a number")
    chain_column: str = field("chain", "files: the field with a chain of thought, for fine-tuning and worked examples")
    train_size: int = field(-1, "training questions; 0: all; -1: 2,000 of reasoning_gym, all of the others", least=-1)
    heldout_size: int = field(
        -1,
        "held-out questions; -1: 100 of reasoning_gym, all of a held-out file or split, or a tenth of the training "
        "rows and at most 100; 0: none of the training rows, all of the others",
        least=-1,
    )
    seed: int = field(0, "seed of generated questions, and of the cuts and held-out works of documents", least=0)
    documents: DocumentConfig = DocumentConfig()
    skip_bad_rows: bool = field(
        False, "leave out bad or too long rows instead of refusing them; they are counted and named"
    )

    @property
    def columns(self) -> Columns:
        """What the user's files call their fields."""
        return Columns(self.prompt_column, self.answer_column, self.chain_column)


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Rows that were read or drawn, and why some of them are in neither set."""

    rows: int
    duplicates: int  # the same question again within its set, or the same document
    overlap_removed: int  # training rows that ask a held-out question or a variant, rows that ask a worked example
    bad_rows: tuple[str, ...] = ()  # "file:line: reason"
    removed: tuple[str, ...] = ()  # the duplicates and overlaps of files, each in words
    unused: tuple[str, ...] = ()  # files that are named for no split, beside files that are
