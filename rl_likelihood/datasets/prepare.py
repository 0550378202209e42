"""Turn a data set's original files into prepared splits.

    python -m rl_likelihood.datasets.prepare --dataset=gsm8k --source=PATH[,PATH] --out=DIR
        [--max_chars=N] [--heldout=N] [--skip_bad_rows]

PATH is a file (.json, .jsonl, .parquet, each also .gz; .zip, .whl, .tar, .tgz), a folder of such files, or a data set
of the Hugging Face hub, hf:owner/name[@revision][/folder]. Without --source the public files are fetched.
This writes DIR/NAME/1.0.0 with array_record files that tensorflow-datasets reads (`rl_likelihood.data.prepared.read`)
and prepare_report.json, which it also prints.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from rl_likelihood.data.prepared import FIELDS, REPORT
from rl_likelihood.data.records import encodable
from rl_likelihood.datasets import DATASETS, files
from rl_likelihood.datasets.common import BadRow, DataSet, Row, Skipped
from rl_likelihood.datasets.questions import example_key, group_key, named
from rl_likelihood.datasets.splitting import leave_out_long, split_rows
from rl_likelihood.errors import Parser, UserError, exits
from rl_likelihood.fields import one_of
from rl_likelihood.progress import counted

VERSION = "1.0.0"  # of the stored form: raise it when FIELDS change


@dataclasses.dataclass(frozen=True)
class PrepareReport:
    """Counts of all rows: rows = sum of splits + left_out + too_long + duplicates + overlap + bad_rows."""

    dataset: str
    folder: str
    files: int
    bytes: int
    sha256: str  # of the file; of several files, of what sha256sum prints for them
    rows: int
    splits: dict[str, int]
    left_out: dict[str, int]  # records that the data set skips, by reason
    too_long: tuple[str, ...]  # ids, none of a given test or validation set
    max_chars: int  # 0: no limit
    duplicates: tuple[str, ...]  # as in `splitting.Removed`
    overlap: tuple[str, ...]
    repeats: tuple[str, ...]
    bad_rows: tuple[str, ...]  # "file:line: reason"

    def paragraph(self) -> str:
        """The report in words."""
        sizes = ", ".join(f"{n:,} {name}" for name, n in self.splits.items())
        skipped = "".join(f"; {counted(n, 'row')} left out: {reason}" for reason, n in self.left_out.items())
        limit = f" of over {self.max_chars:,} characters" if self.max_chars else ""
        return (
            f"{self.dataset}: {counted(self.rows, 'row')} of {counted(self.files, 'file')} ({self.bytes / 1e6:.2f} MB) "
            f"read; kept {sizes}{skipped}; removed from training {named(self.duplicates, 'duplicate')} and "
            f"{named(self.overlap, 'question')} of given test sets; in those, {named(self.repeats, 'repeat')} kept; "
            f"{named(self.too_long, 'long row')}{limit} left out; {named(self.bad_rows, 'bad row')}. "
            f"Written to {self.folder}; {REPORT} there names every row."
        )


def prepare(
    name: str, source: str, out: str, max_chars: int = 0, heldout: float | None = None, skip_bad_rows: bool = False
) -> PrepareReport:
    """Reads, splits and writes the data set `name`; `source` is one or more paths with commas, or "" to fetch it.

    `max_chars` limits the characters of prompt, chain and answer together. It does not apply to given test and
    validation sets, and does not change which questions are held out. `heldout` overrides the set's own share (below 1)
    or number of held-out training questions. UserError for anything unknown, unreadable or empty, and for the first bad
    row unless `skip_bad_rows`.
    """
    if name == "reasoning_gym":
        raise UserError(
            "--dataset is 'reasoning_gym', which has no files to prepare; train with data.source=reasoning_gym and "
            "the names of its tasks in data.tasks"
        )
    one_of("--dataset", name, DATASETS)
    if max_chars < 0:
        raise UserError(f"--max_chars is {max_chars}; it must be 0 (no limit) or more")
    if heldout is not None and not (0 <= heldout <= 1 or (heldout > 0 and float(heldout).is_integer())):
        raise UserError(f"--heldout is {heldout}; give a number of questions, or a share below 1")
    dataset = DATASETS[name]
    folder = Path(out).expanduser() / name / VERSION
    if folder.exists():
        raise UserError(f"{folder} exists already; delete it or choose another --out")

    sources = source.split(",") if source else files.download(dataset, Path(out).expanduser() / "downloads")
    located = files.locate(sources, dataset)
    size, sha256 = files.digest(located)
    read = read_rows(dataset, located, skip_bad_rows)
    _refuse_copies(read.given, source)
    splits, removed = split_rows(dataset, read.rows, dataset.heldout if heldout is None else heldout)
    given = {row.split for row in read.rows} - {"train"}
    splits, too_long = leave_out_long(dataset, splits, given, max_chars)
    report = PrepareReport(
        dataset=name,
        folder=str(folder),
        files=len(located),
        bytes=size,
        sha256=sha256,
        rows=read.count,
        splits={split: len(rows) for split, rows in splits.items()},
        left_out=dict(sorted(read.left_out.items())),
        too_long=too_long,
        max_chars=max_chars,
        **removed._asdict(),
        bad_rows=tuple(read.bad),
    )
    write(name, splits, out)
    try:
        (folder / REPORT).write_text(json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False) + "\n")
    except OSError as e:
        shutil.rmtree(folder)  # it appears whole or not at all
        raise _cannot_write(out, e) from e
    return report


# ---------------------------------------------------------------------------------------- rows


@dataclasses.dataclass
class _Read:
    rows: list[Row] = dataclasses.field(default_factory=list)
    given: dict[tuple[str, str], set[str]] = dataclasses.field(default_factory=dict)  # (split, file) -> keys, no train
    count: int = 0
    left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    bad: list[str] = dataclasses.field(default_factory=list)


def read_rows(dataset: DataSet, located: list[tuple[Path, Path]], skip_bad_rows: bool) -> _Read:
    """Every record of the files as a row with its split, and counts of skipped and bad records."""
    read = _Read()
    ids: dict[tuple[str, str], str] = {}
    records = dataset.records(located) if dataset.records else files.read_all(located, dataset)
    for location, record in records:
        read.count += 1
        try:
            if isinstance(record, str):
                raise BadRow(record)
            row = dataset.parse(record, location)
            if isinstance(row, Row):
                row = _checked(row, row.split or location.split or dataset.split)
            if isinstance(row, Row):
                first = ids.setdefault((row.split, row.example.id), str(location))
                if first != str(location):
                    raise BadRow(f"id {row.example.id!r} is also that of {first}")
        except BadRow as e:
            read.bad.append(f"{location}: {e}")
            if not skip_bad_rows:
                raise UserError(
                    f"{read.bad[0]}; give {dataset.fetch}, or leave such rows out with --skip_bad_rows"
                ) from e
            continue
        if isinstance(row, Skipped):
            read.left_out[row.reason] += 1
        else:
            read.rows.append(row)
            if row.split != "train":
                read.given.setdefault((row.split, location.file), set()).add(row.key)
    if not read.rows:
        why = "; ".join([f"{n} {reason}" for reason, n in read.left_out.items()]) or "the files are empty"
        more = f"; {len(read.bad)} bad" if read.bad else ""
        raise UserError(f"no row of {dataset.name} is left of {read.count} ({why}{more}); give {dataset.fetch}")
    return read


def _refuse_copies(given: dict[tuple[str, str], set[str]], source: str) -> None:
    """Refuses a second copy of a test set's file: every question would count twice."""
    files_of: dict[tuple[str, frozenset[str]], str] = {}
    for (split, file), keys in given.items():
        first = files_of.setdefault((split, frozenset(keys)), file)
        if first == file or len(keys) == 1:  # a file may be one question
            continue
        names = [str(PurePosixPath(f).parent) for f in (first, file)]
        if names[0] == names[1]:
            names = [first, file]
        if source.startswith("hf:") or Path(source).is_dir():
            names = [f"{source.rstrip('/')}/{name}" for name in names]
        raise UserError(
            f"{file} asks the {len(keys)} {split} questions of {first} again, which would count twice; name one of "
            f"them with --source: {' or '.join(names)}"
        )


def _checked(row: Row, split: str) -> Row | Skipped:
    """The row with its split and key filled in; Skipped if it has no question or no answer."""
    example = row.example
    if not split:
        raise BadRow("cannot tell whether it is for training or testing; put train or test in the file's name")
    if not encodable([example.id, example.prompt, example.answer, example.chain]):
        raise BadRow("a text holds half of a surrogate pair, which is not text")
    if not example.prompt.strip():
        return Skipped("no question")
    if not example.answer.strip():
        return Skipped("no answer")
    key, group = row.key or example_key(example), row.group or row.key or group_key(example)
    return dataclasses.replace(row, split=split, key=key, group=group)


# ---------------------------------------------------------------------------------------- storage


def write(name: str, splits: dict[str, list[Row]], out: str) -> None:
    """The splits as the tensorflow-datasets data set `name` in the folder `out`: text features, array_record files.

    A prepared folder appears whole or not at all. Nothing here needs TensorFlow.
    """
    import tensorflow_datasets as tfds  # here because it takes half a second

    class PreparedDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """One prepared data set."""

        VERSION = tfds.core.Version(VERSION)
        # Else it would look for checksums, which needs a package that the library does not install.
        code_path = None

        def _info(self) -> tfds.core.DatasetInfo:
            features = tfds.features.FeaturesDict({field: tfds.features.Text() for field in FIELDS})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager) -> dict:
            return {split: self._generate_examples(rows) for split, rows in splits.items()}

        def _generate_examples(self, rows):
            for row in rows:
                extra = json.dumps(dict(row.extra), ensure_ascii=False, default=str)
                example = row.example
                values = (example.id, example.prompt, example.answer, example.chain, example.task, extra)
                yield example.id, dict(zip(FIELDS, values, strict=True))

    PreparedDataset.name = name
    try:
        builder = PreparedDataset(data_dir=str(Path(out).expanduser()), file_format="array_record")
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except (OSError, RuntimeError) as e:  # the latter from the writer of array_record files
        raise _cannot_write(out, e) from e
    shutil.rmtree(Path(out).expanduser() / "downloads" / "extracted", ignore_errors=True)  # its empty folder
    with contextlib.suppress(OSError):
        (Path(out).expanduser() / "downloads").rmdir()  # holds something where files were fetched


def _cannot_write(out: str, e: OSError | RuntimeError) -> UserError:
    said = re.search(r"\(\) failed: ([^;]*)", str(e))  # as "...: write() failed: No space left on device; writing ..."
    why = getattr(e, "strerror", None) or (said[1] if said else e)
    return UserError(f"{out} cannot be written ({why}); free some space or choose another --out")


# ---------------------------------------------------------------------------------------- command


@exits
def main(argv: Sequence[str]) -> int:
    """Prepares what the flags say and prints the report; 0."""
    parser = Parser(prog="python -m rl_likelihood.datasets.prepare", allow_abbrev=False, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dataset", default="", help=", ".join(DATASETS))
    parser.add_argument("--source", default="", help="files or folders, with commas, or hf:owner/name[/folder]")
    parser.add_argument("--out", default="", help="folder to write")
    parser.add_argument("--max_chars", type=int, default=0, help="leave out rows with more characters; 0 for no limit")
    parser.add_argument("--heldout", type=float, default=None, help="number or share of questions to hold out")
    parser.add_argument("--skip_bad_rows", action="store_true", help="leave out and count rows that cannot be read")
    flags = parser.parse_args(argv)
    if not flags.out:
        raise UserError("--out is missing; write --dataset=NAME --source=PATH --out=DIR")
    report = prepare(flags.dataset, flags.source, flags.out, flags.max_chars, flags.heldout, flags.skip_bad_rows)
    print(report.paragraph())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
