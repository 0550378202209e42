"""A workdir in a Google Cloud Storage bucket. The run works in a local copy, which every save uploads.

    gs://BUCKET/RUN/FILES.json   names and sizes of the run's other objects, and a token of the process that wrote them
                   /...          the files of the workdir, under their names

FILES.json is written last, so an upload counts as a whole: objects that it does not name are ignored. A run that is
killed while it uploads resumes from the upload before it. Later lines of metrics.jsonl are cut off then, as on a disk.

FILES.json is also the lock. A process writes it once the run's config and data are accepted, and later only if nobody
else has written it since. So the newest start owns the run. An older process that still runs, perhaps on a forgotten
machine, ends at its next save.

The client is tensorstore, which orbax needs anyway. Orbax itself would write to gs:// only with gcsfs and Google's
clients, which are 25 packages.
"""

import contextlib
import dataclasses
import json
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import jax
import tensorstore

from rl_likelihood.errors import UserError
from rl_likelihood.runtime.checkpoint import FOLDER
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.distributed import SharedRefusal
from rl_likelihood.runtime.lock import FILE as LOCK
from rl_likelihood.runtime.lock import lock
from rl_likelihood.weights.assets import cache_dir

PREFIX, FILES, CONFIG = "gs://", "FILES.json", "config.json"
BATCH = 2**30  # bytes in memory at once, unless one file is larger
# Not uploaded: locks, unfinished files, and files that other threads and processes rename while the run goes on.
NOT_SENT = re.compile(rf"^wandb/|(^|/){LOCK}$|\.(part|lock|stale)$|-(journal|shm|wal)$|orbax-checkpoint-tmp")
Store = tensorstore.KvStore


class NotOwner(UserError):
    """Another process has written the run in the bucket."""


def is_address(workdir: str | Path | None) -> bool:
    """Whether the workdir is in a bucket."""
    return str(workdir).startswith(PREFIX)


@contextlib.contextmanager
def opened(workdir: str | Path) -> Iterator[tuple[Path, "Copy | None"]]:
    """(the folder to train in, None). For a gs:// address: a local copy in the user's cache, and what uploads it.

    The copy is downloaded at the start. If it was made the run's owner, it is uploaded at the end too.
    """
    if not is_address(workdir):
        yield Path(workdir), None
        return
    address = str(workdir).rstrip("/")
    if jax.process_count() > 1:
        raise SharedRefusal(
            f"--workdir is {address}, which is for runs of one process, and this one has {jax.process_count()}; give a "
            "folder that all hosts mount"
        )
    store, folder = open_store(address), cache_dir() / "buckets" / quote(address.removeprefix(PREFIX), safe="")
    with lock(folder.parent, f"{folder.name}.lock"):
        copy = download(address, store, folder)
        say(f"bucket   {address}: uploaded with every checkpoint; local copy in {folder}")
        try:
            yield folder, copy
        except BaseException:
            with contextlib.suppress(UserError):  # an error of the upload would hide why the run ended
                copy.close()
            raise
        copy.close()


@contextlib.contextmanager
def copied(workdir: str | Path, step: int | None) -> Iterator[Path]:
    """The folder to read a run from, with the checkpoint of `step`, by default the newest. For a gs:// address: a
    temporary copy. It changes nothing in the bucket."""
    if not is_address(workdir):
        yield Path(workdir)
        return
    address = str(workdir).rstrip("/")
    store = open_store(address)
    sizes = _manifest(address, store)[0] or {}
    steps = sorted({int(name.split("/")[1]) for name in sizes if re.match(rf"{FOLDER}/\d+/", name)})
    if not steps:
        raise UserError(f"{address} holds no checkpoint; give the --workdir of a run that has saved one")
    if step is not None and step not in steps:
        raise UserError(f"{address} has no checkpoint of step {step}; choose one of {', '.join(map(str, steps))}")
    wanted = f"{FOLDER}/{steps[-1] if step is None else step}/"
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="run-") as folder:
        chosen = {n: size for n, size in sizes.items() if n.startswith(wanted) or not n.startswith(f"{FOLDER}/")}
        _fetch(address, store, chosen, Path(folder))
        yield Path(folder)


@dataclasses.dataclass
class Copy:
    """A run's local copy. `owner`: this process's token, once it owns the run. `generation`: of FILES.json as this
    process read or wrote it last. `sent`: size and time of each file as it is in the bucket."""

    address: str
    store: Store
    folder: Path
    generation: bytes
    sent: dict[str, tuple[int, int]]
    owner: str = ""

    def own(self) -> None:
        """Takes the run over from any process that still runs it."""
        self.owner = secrets.token_hex(8)
        try:
            self.commit({name: file[0] for name, file in self.sent.items()})
        except NotOwner:
            self.owner = ""
            raise UserError(
                f"{self.address} changed while this process read it, so another process runs it; run the same command "
                "again to take the run over"
            ) from None

    def close(self) -> None:
        """The last upload, of a run that this process owns. If it fails, the files stay, under another name."""
        if not self.owner:
            return
        try:
            self.upload()
        except UserError:
            copy = self.folder.with_name(f"{self.folder.name}.not_uploaded")
            shutil.rmtree(copy, ignore_errors=True)
            self.folder.rename(copy)
            say(f"bucket   the last files are not in {self.address}, but in {copy}")
            raise

    def upload(self) -> None:
        """Makes the run in the bucket equal to the folder. NotOwner if another process has started this run."""
        files = _files(self.folder)
        changed = {name: file[0] for name, file in files.items() if self.sent.get(name) != file}
        if json.loads(_read(self.address, self.store, FILES).value or "{}").get("owner") != self.owner:
            raise self.lost()
        with _asking(self.address):
            for names in _batches(changed):
                writes = [self.store.write(name, (self.folder / name).read_bytes()) for name in names]
                for write in writes:
                    write.result()
            self.commit({name: file[0] for name, file in files.items()})
            listed = [name.decode() for name in self.store.list(Store.KeyRange(f"{FOLDER}/", f"{FOLDER}0")).result()]
            present = {name for name in listed if name.startswith(f"{FOLDER}/")} | set(self.sent)  # unfinished ones too
            for delete in [self.store.write(name, None) for name in sorted(present - set(files))]:
                delete.result()
        self.sent = files

    def commit(self, sizes: dict[str, int]) -> None:
        """Writes FILES.json, if it is still the one that this process wrote or read last."""
        text = json.dumps({"owner": self.owner, "files": sizes}).encode()
        with _asking(self.address):
            generation = self.store.write(FILES, text, if_equal=self.generation).result().generation
        if not generation:  # refused, perhaps because our own write was sent twice, after its first reply was lost
            now = _read(self.address, self.store, FILES)
            if now.value != text:
                raise self.lost()
            generation = now.stamp.generation
        self.generation = generation

    def lost(self) -> NotOwner:
        return NotOwner(f"{self.address} was started again by another process, which owns it now, so this process ends")


def download(address: str, store: Store, folder: Path) -> Copy:
    """Makes `folder` a copy of the run. Changes nothing in a bucket that has the run."""
    sizes, generation = _manifest(address, store)
    if sizes is None and _read(address, store, CONFIG).state == "value":
        raise UserError(
            f"{address} holds {CONFIG} but no {FILES}, so it was copied there by hand; choose another --workdir, or "
            "copy it to a folder and give that"
        )
    shutil.rmtree(folder, ignore_errors=True)  # an earlier copy; only the bucket counts
    folder.mkdir(parents=True, exist_ok=True)
    _fetch(address, store, sizes or {}, folder)
    copy = Copy(address, store, folder, generation, _files(folder))
    if sizes is None:  # a new run: says at once whether the bucket can be written
        copy.own()
    return copy


def open_store(address: str) -> Store:
    """The objects of an address. Nothing is asked of the server yet."""
    bucket, _, path = address.removeprefix(PREFIX).partition("/")
    if not bucket or not path:
        raise UserError(f"--workdir is {address!r}; give a bucket and a folder in it, as {PREFIX}bucket/run")
    with _asking(address):
        return Store.open({"driver": "gcs", "bucket": bucket, "path": f"{path}/"}).result()


def _manifest(address: str, store: Store) -> tuple[dict[str, int] | None, bytes]:
    """(the sizes of the run's objects by name, or None if there is no FILES.json; the generation of FILES.json)."""
    file = _read(address, store, FILES)
    return json.loads(file.value)["files"] if file.state == "value" else None, file.stamp.generation


def _read(address: str, store: Store, name: str) -> Store.ReadResult:
    with _asking(address):
        return store.read(name).result()


def _fetch(address: str, store: Store, sizes: dict[str, int], folder: Path) -> None:
    for names in _batches(sizes):
        reads = [(name, store.read(name)) for name in names]
        for name, read in reads:
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{address}/{FILES} names {name!r}, which is no file of the run; delete that name")
            with _asking(address):
                stored = read.result()
            if stored.state != "value":
                raise UserError(f"{address}/{name} is missing, though {FILES} names it; a run may be saving: try again")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(stored.value)
            except OSError as e:
                raise UserError(f"{path}: cannot be written ({e.strerror or e}); set RL_LIKELIHOOD_CACHE") from e


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file to upload, by its name in the workdir."""
    named = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {n: path.stat() for n, path in named.items() if not NOT_SENT.search(n) and path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in files.items()}


def _batches(sizes: dict[str, int]) -> Iterator[list[str]]:
    """The names in groups of at most 64 files and BATCH bytes, or of one larger file."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and (len(names) == 64 or total + size > BATCH):
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    if names:
        yield names


@contextlib.contextmanager
def _asking(address: str) -> Iterator[None]:
    """Reports tensorstore's errors in one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # mostly ValueError, with the error's code in its text
        text = " ".join(str(e).split())[:200]
        if "PERMISSION_DENIED" in text or "UNAUTHENTICATED" in text:
            why = (
                "access was refused; run `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS "
                "for an account that may read and write objects of this bucket"
            )
        elif "NOT_FOUND" in text:
            why = "there is no such bucket; create it, or correct --workdir"
        else:
            why = f"the bucket cannot be used ({text})"
        raise UserError(f"{address}: {why}") from e
