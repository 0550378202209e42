"""The files and archives of a data set, their records, and their download."""

import contextlib
import fnmatch
import hashlib
import http.client
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl_likelihood.data.records import SUFFIXES, UNREAD, Location, reason, records
from rl_likelihood.datasets.common import SPLITS, Files, split_in
from rl_likelihood.errors import UserError
from rl_likelihood.fields import nearest
from rl_likelihood.progress import of_bytes, tell

Records = Iterator[tuple[Location, dict[str, Any] | str]]
ARCHIVES = (".zip", ".whl", ".tar", ".tar.gz", ".tgz")
# What the hub and tensorflow-datasets put beside data.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "features.json")
CONVERTED = "refs/convert/parquet"  # the revision with the hub's own parquet files of a data set
_TIMEOUT = 30  # seconds without a byte before a download is given up


def locate(sources: list[str], dataset: Files, field: str = "--source") -> list[tuple[Path, Path]]:
    """(file, folder that its name is relative to) of every data file or archive in `sources`, in order of names.

    A source is a path or hf:owner/name. A file that the user names is always taken; of a folder those that fit
    `dataset.patterns`. `field` is the setting or flag with which the user named them.
    """
    located: list[tuple[Path, Path]] = []
    for named in sources:
        source = from_hub(named, f"give {dataset.fetch} with {field}") if named.startswith("hf:") else named
        path = Path(source).expanduser()
        try:
            exists = path.exists()
        except OSError as e:  # such as a name that is too long
            raise UserError(f"{field}={source:.80} cannot be opened ({e.strerror}); give {dataset.fetch}") from None
        if exists and not path.is_dir():  # a file, a pipe
            located.append((path, path.parent))
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file())
            saved = {p.parent for p in inside if p.suffix == ".arrow"}  # save_to_disk writes a state.json beside them
            inside = [p for p in inside if p.name != "state.json" or p.parent not in saved]
            fitting = [p for p in inside if _is_archive(p.name) or _belongs(str(p.relative_to(path)), dataset)]
            if not fitting:
                other = next(iter(unread(source)), "")
                holds = f" but {other}, which is not read ({UNREAD[Path(other).suffix.lower()]})" if other else ""
                raise UserError(f"{field}={named} holds no file of {dataset.name}{holds}; it needs {dataset.fetch}")
            located += [(p, path) for p in fitting]
        else:
            raise UserError(f"{field}={source} does not exist; {_advice(source, path) or f'give {dataset.fetch}'}")
    return located


def unread(source: str) -> list[str]:
    """The names of the folder's files that hold rows in a format that is not read."""
    folder = Path(source).expanduser()
    inside = folder.rglob("*") if folder.is_dir() else ()
    return sorted(str(p.relative_to(folder)) for p in inside if p.suffix.lower() in UNREAD)


def _advice(source: str, path: Path) -> str:
    """A hint for a path that does not exist; "" without one."""
    siblings = {p.name for p in path.parent.iterdir()} - {path.name} if path.parent.is_dir() else ()
    if near := nearest(path.name, siblings):
        return f"did you mean {path.parent / near}?"
    return f"for a data set of the hub write hf:{source}" if source.count("/") == 1 and "." not in source else ""


def read_all(located: list[tuple[Path, Path]], dataset: Files, as_written: bool = False) -> Records:
    """(location, record) of every record of the files and archives, in their order."""
    for file, below in located:
        yield from read(file, below, dataset, as_written)


def read(file: Path, below: Path, dataset: Files, as_written: bool = False) -> Records:
    """(location, record) of every record of a file or archive, as `records` gives them."""
    name = str(file.relative_to(below))
    # The folder's own name counts only if it is the name of a split: MATH/train, not runs_test/data.
    hint = f"{below.name}/{name}" if below.name.lower() in SPLITS else name
    try:
        if _is_archive(name):
            for member, data in _members(file, name, dataset):
                split = split_in(f"{hint}/{member}")
                yield from records(f"{name}/{member}", data, split, as_written, dataset.text)
        else:
            yield from records(name, file.read_bytes(), split_in(hint), as_written, dataset.text)
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror}); check its permissions") from e


def digest(files: list[tuple[Path, Path]]) -> tuple[int, str]:
    """(bytes, sha256) of one file; of several, the sha256 of the lines "sha256  name" that sha256sum prints."""
    size, lines = 0, []
    for file, below in files:
        with file.open("rb") as f:
            lines.append(f"{hashlib.file_digest(f, 'sha256').hexdigest()}  {file.relative_to(below)}\n")
        size += file.stat().st_size
    together = lines[0].split()[0] if len(lines) == 1 else hashlib.sha256("".join(lines).encode()).hexdigest()
    return size, together


# ---------------------------------------------------------------------------------------- formats


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def _belongs(path: str, dataset: Files) -> bool:
    name = path.rpartition("/")[2]
    if name in _DESCRIPTIONS or name.startswith(".") or "__MACOSX/" in path:
        return False
    plain = path.lower().removesuffix(".gz")
    fitting = [p for p in dataset.patterns if fnmatch.fnmatchcase(path.lower(), p.lower())]
    return bool(fitting) and (
        plain.endswith(SUFFIXES) or any(p.removesuffix(".gz").endswith((".txt", ".toml")) for p in fitting)
    )


def _members(file: Path, name: str, dataset: Files) -> Iterator[tuple[str, bytes]]:
    """(path, contents) of the archive's files that belong to the data set, in order of their paths."""
    try:
        if name.lower().endswith((".zip", ".whl")):
            yield from _zip_members(file, name, dataset)
            return
        with tarfile.open(file) as archive:
            inside = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
            fitting = [m for m in inside if _belongs(f"{name}/{m.name}", dataset)]
            _refuse_empty(fitting, name, dataset)
            for m in fitting:
                yield m.name, archive.extractfile(m).read()
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as e:
        raise UserError(f"{file} cannot be read as an archive ({reason(e)}); fetch {dataset.fetch} again") from e


def _zip_members(file: Path, name: str, dataset: Files) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        fitting = sorted(n for n in archive.namelist() if _belongs(f"{name}/{n}", dataset))
        _refuse_empty(fitting, name, dataset)
        if not any(archive.getinfo(n).flag_bits & 1 for n in fitting):
            yield from ((n, archive.read(n)) for n in fitting)
            return
    try:
        import pyzipper  # zipfile cannot decrypt AES
    except ImportError as e:
        raise UserError(
            f"{file} is encrypted (AES), which needs the package pyzipper; run pip install -c constraints.txt -e "
            f"'.[data]', or unpack it with the password {dataset.password.decode()!r} and name the unpacked file with "
            "--source"
        ) from e
    with pyzipper.AESZipFile(file) as archive:
        for n in fitting:
            try:
                yield n, archive.read(n, pwd=dataset.password)
            except RuntimeError as e:
                raise UserError(f"{file}: the password of {dataset.name} does not open it; unpack it first") from e


def _refuse_empty(members: list, name: str, dataset: Files) -> None:
    if not members:
        raise UserError(f"{name} holds no file of {dataset.name}; it needs {dataset.fetch}")


# ---------------------------------------------------------------------------------------- downloads


def download(dataset: Files, folder: Path) -> list[str]:
    """Fetch the data set's public files to `folder`, if they are not there yet; their paths.

    UserError, saying what to fetch by hand, when an address does not answer.
    """
    by_hand = f"fetch {dataset.fetch} where there is a connection and name it with --source"
    paths = []
    for address in dataset.addresses:
        if address.startswith("hf:"):
            paths.append(from_hub(address, by_hand))
            continue
        # Files of one name, train.jsonl for instance, come from different folders.
        target = folder / dataset.name / hashlib.sha256(address.encode()).hexdigest()[:8] / address.rpartition("/")[2]
        if not target.is_file():
            _fetch(address, target, by_hand)
        paths.append(str(target))
    return paths


def _fetch(address: str, target: Path, by_hand: str) -> None:
    """One file, which appears whole or not at all."""
    part = target.with_name(target.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer, part.open("wb") as f:
            promised = answer.headers.get("Content-Length")
            tell(f"fetching {address}" + (f" ({int(promised) / 1e6:.1f} MB)" if promised else ""))
            with of_bytes("fetched", int(promised)) if promised else contextlib.nullcontext() as told:
                while data := answer.read1(1 << 20):
                    f.write(data)
                    if told:
                        told(f.tell())
        if promised is not None and part.stat().st_size != int(promised):  # a broken connection looks like an end
            raise OSError(f"{part.stat().st_size} of {promised} bytes came")
        part.replace(target)
    except (OSError, http.client.HTTPException) as e:
        raise UserError(f"{address} cannot be fetched ({getattr(e, 'reason', e)}); {by_hand}") from e


def from_hub(address: str, by_hand: str) -> str:
    """The folder of a Hugging Face data set hf:owner/name[@revision], or of one folder in it, hf:owner/name/folder.

    A revision is a commit, a tag, a branch or a reference (refs/convert/parquet); without one it is the newest. Only
    files of data are downloaded, to that library's own cache.
    """
    parts = address.removeprefix("hf:").strip("/").split("/")
    if len(parts) < 2 or not all(parts) or ".." in parts:
        raise UserError(f"{address!r} names no data set of the hub; write hf:owner/name or hf:owner/name/folder")
    import huggingface_hub  # slow to import

    name, _, revision = parts[1].partition("@")
    inside = parts[2:]
    if revision == "refs":
        revision, inside = "/".join(["refs", *inside[:2]]), inside[2:]
    repository, below = f"{parts[0]}/{name}", "/".join(inside)
    patterns = [f"{below}/*{suffix}*" if below else f"*{suffix}*" for suffix in (*SUFFIXES, *ARCHIVES)]
    try:
        folder = huggingface_hub.snapshot_download(
            repository, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except Exception as e:  # whatever its HTTP library of the day raises: no connection, no such set, no access
        raise UserError(f"{address} cannot be fetched ({reason(e)}); {by_hand}") from e
    if below and not Path(folder, below).is_dir():
        raise UserError(f"{address}: the data set {repository} has no folder {below!r} with data; look on its page")
    if not Path(folder).is_dir():  # nothing was downloaded
        raise UserError(
            f"{address} has no JSON or parquet file; the hub converts most data sets to parquet: try "
            f"hf:{repository}@{CONVERTED}, or look on its page"
        )
    return str(Path(folder, below))
