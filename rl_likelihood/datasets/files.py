"""Records out of files: JSON, JSON lines, parquet, plain or compressed or in an archive; and their download."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import http.client
import io
import json
import shutil
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from rl_likelihood.datasets.common import SPLITS, DataSet, Place, split_in
from rl_likelihood.shapes import UserError

DATA = (".json", ".jsonl", ".parquet")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
# What the hub and tensorflow-datasets put beside data.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "features.json")
_TIMEOUT = 30  # seconds without a byte before a download is given up


def locate(sources: list[str], dataset: DataSet) -> list[tuple[Path, Path]]:
    """(file, folder its name is told from) of every data file or archive in `sources`, in order of names.

    A file that is named is taken whatever its name; of a folder those that fit `dataset.patterns`.
    """
    found: list[tuple[Path, Path]] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_file():
            found.append((path, path.parent))
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file())
            mine = [p for p in inside if _is_archive(p.name) or _belongs(str(p.relative_to(path)), dataset)]
            if not mine:
                raise UserError(f"--source={source} holds no file of {dataset.name}; it needs {dataset.fetch}")
            found += [(p, path) for p in mine]
        else:
            hint = f" (from the hub: hf:{source})" if source.count("/") == 1 and "." not in source else ""
            raise UserError(f"--source={source} does not exist; give {dataset.fetch}{hint}")
    return found


def read_all(found: list[tuple[Path, Path]], dataset: DataSet) -> Iterator[tuple[Place, dict | str]]:
    """`read` of every file in turn."""
    for file, below in found:
        yield from read(file, below, dataset)


def read(file: Path, below: Path, dataset: DataSet) -> Iterator[tuple[Place, dict | str]]:
    """(place, record) of every record of a file or archive; a str in place of a record is what is wrong with it."""
    name = str(file.relative_to(below))
    # The folder's own name tells a split only if it is nothing but that: MATH/train, not runs_test/data.
    hint = f"{below.name}/{name}" if below.name.lower() in SPLITS else name
    if _is_archive(name):
        for member, data in _members(file, name, dataset):
            yield from _records(f"{name}/{member}", f"{hint}/{member}", data)
        return
    try:
        data = file.read_bytes()
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror}); check its permissions") from e
    yield from _records(name, hint, data)


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


def _belongs(path: str, dataset: DataSet) -> bool:
    name = path.rpartition("/")[2]
    if name in _DESCRIPTIONS or name.startswith(".") or "__MACOSX/" in path:
        return False
    plain = path.lower().removesuffix(".gz")
    fitting = [p for p in dataset.patterns if fnmatch.fnmatchcase(path.lower(), p.lower())]
    return bool(fitting) and (plain.endswith(DATA) or any(p.endswith((".txt", ".toml")) for p in fitting))


def _members(file: Path, name: str, dataset: DataSet) -> Iterator[tuple[str, bytes]]:
    """(path, contents) of the archive's files that belong to the data set, in order of their paths."""
    try:
        if name.lower().endswith(".zip"):
            yield from _zip_members(file, name, dataset)
            return
        with tarfile.open(file) as archive:
            inside = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
            mine = [m for m in inside if _belongs(f"{name}/{m.name}", dataset)]
            _refuse_empty(mine, name, dataset)
            for m in mine:
                yield m.name, archive.extractfile(m).read()
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as e:
        raise UserError(f"{file} cannot be read as an archive ({_reason(e)}); fetch {dataset.fetch} again") from e


def _zip_members(file: Path, name: str, dataset: DataSet) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        mine = sorted(n for n in archive.namelist() if _belongs(f"{name}/{n}", dataset))
        _refuse_empty(mine, name, dataset)
        locked = any(archive.getinfo(n).flag_bits & 1 for n in mine)
        if not locked:
            for n in mine:
                yield n, archive.read(n)
            return
    try:
        import pyzipper  # zipfile cannot decrypt AES
    except ImportError as e:
        raise UserError(
            f"{file} is encrypted (AES), which needs the package pyzipper; run pip install pyzipper, or unpack it "
            f"with the password {dataset.password.decode()!r} and name the unpacked file with --source"
        ) from e
    with pyzipper.AESZipFile(file) as archive:
        for n in mine:
            try:
                yield n, archive.read(n, pwd=dataset.password)
            except RuntimeError as e:
                raise UserError(f"{file}: the password of {dataset.name} does not open it; unpack it first") from e


def _refuse_empty(members: list, name: str, dataset: DataSet) -> None:
    if not members:
        raise UserError(f"{name} holds no file of {dataset.name}; it needs {dataset.fetch}")


def _records(name: str, hint: str, data: bytes) -> Iterator[tuple[Place, dict | str]]:
    split = split_in(hint)
    plain = name.lower()
    if plain.endswith(".gz"):
        plain = plain.removesuffix(".gz")
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, zlib.error, EOFError) as e:
            raise UserError(f"{name} cannot be unpacked ({e}); fetch it again") from e
    if plain.endswith(".parquet"):
        for n, record in enumerate(_parquet(name, data), start=1):
            yield Place(name, n, "row", split=split), record
        return
    data = data.removeprefix(b"\xef\xbb\xbf")
    if plain.endswith(".jsonl") or _looks_like_lines(data):
        for n, line in enumerate(data.split(b"\n"), start=1):
            if line.strip():
                yield Place(name, n, "line", split=split), _line(line)
        return
    try:
        whole = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise UserError(f"{name} is not UTF-8 text (byte {e.start}); fetch it again") from e
    except json.JSONDecodeError as e:
        raise UserError(f"{name}:{e.lineno}: not JSON ({e.msg}); fetch it again") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{name} is not JSON (nested too deeply or a number too long); fetch it again") from e
    if isinstance(whole, dict) and whole and all(isinstance(v, dict) for v in whole.values()):
        for n, (key, record) in enumerate(whole.items(), start=1):
            yield Place(name, n, "row", key, split), record
    elif isinstance(whole, dict):
        yield Place(name, 1, "row", name, split), whole
    elif isinstance(whole, list):
        for n, record in enumerate(whole, start=1):
            yield Place(name, n, "row", split=split), _object(record)
    else:
        raise UserError(f"{name} holds no records but one {type(whole).__name__}; it should be a list of objects")


def _looks_like_lines(data: bytes) -> bool:
    """JSON lines under the name .json: the first line is an object by itself and another follows."""
    first, _, rest = data.lstrip().partition(b"\n")
    return bool(rest.strip()) and isinstance(_line(first), dict)


def _line(line: bytes) -> dict | str:
    try:
        return _object(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except (ValueError, RecursionError) as e:
        return f"not JSON ({getattr(e, 'msg', None) or 'nested too deeply or a number too long'})"


def _object(value) -> dict | str:
    return value if isinstance(value, dict) else f"not a JSON object but {type(value).__name__}"


def _parquet(name: str, data: bytes) -> Iterator[dict]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise UserError(f"reading {name} needs the package pyarrow; run pip install pyarrow") from e
    try:
        for batch in pyarrow.parquet.ParquetFile(io.BytesIO(data)).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as e:
        raise UserError(f"{name} is not a readable parquet file ({_reason(e)}); fetch it again") from e


def _reason(e: Exception) -> str:
    """The first line of what went wrong."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


# ---------------------------------------------------------------------------------------- downloads


def download(dataset: DataSet, folder: Path) -> list[str]:
    """Fetch the data set's public files to `folder`, if they are not there yet; their paths.

    UserError, saying what to fetch by hand, when an address does not answer.
    """
    by_hand = f"fetch {dataset.fetch} where there is a connection and name it with --source"
    if not dataset.addresses:
        raise UserError(f"--source is missing: {dataset.name} has no public address; {by_hand}")
    paths = []
    for address in dataset.addresses:
        if address.startswith("hf:"):
            paths.append(from_hub(address, by_hand))
            continue
        # Files of one name, train.jsonl for instance, come from different folders.
        target = folder / dataset.name / hashlib.sha256(address.encode()).hexdigest()[:8] / address.rpartition("/")[2]
        paths.append(str(target))
        if target.is_file():
            continue
        part = target.with_name(target.name + ".part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer, part.open("wb") as f:
                shutil.copyfileobj(answer, f)
                promised = answer.headers.get("Content-Length")
            if promised is not None and part.stat().st_size != int(promised):  # a broken connection reads as an end
                raise OSError(f"{part.stat().st_size} of {promised} bytes came")
            part.replace(target)
        except (OSError, http.client.HTTPException) as e:
            raise UserError(f"{address} cannot be fetched ({getattr(e, 'reason', e)}); {by_hand}") from e
    return paths


def from_hub(address: str, by_hand: str) -> str:
    """The folder of a Hugging Face data set hf:owner/name[@revision], or of one folder in it, hf:owner/name/folder.

    Without a revision (a commit, say) it is the newest. Only files of data are downloaded, to that library's own cache.
    """
    parts = address.removeprefix("hf:").strip("/").split("/")
    if len(parts) < 2 or not all(parts) or ".." in parts:
        raise UserError(f"{address!r} names no data set of the hub; write hf:owner/name or hf:owner/name/folder")
    try:
        import huggingface_hub
    except ImportError as e:
        raise UserError(
            f"{address} needs the extra hub, the package huggingface_hub; run pip install -e '.[hub]', or {by_hand}"
        ) from e
    name, _, revision = parts[1].partition("@")
    repository, below = f"{parts[0]}/{name}", "/".join(parts[2:])
    patterns = [f"{below}/*{suffix}*" if below else f"*{suffix}*" for suffix in (*DATA, *ARCHIVES)]
    try:
        folder = huggingface_hub.snapshot_download(
            repository, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except Exception as e:  # whatever its HTTP library of the day raises: no connection, no such set, no access
        raise UserError(f"{address} cannot be fetched ({_reason(e)}); {by_hand}") from e
    if below and not Path(folder, below).is_dir():
        raise UserError(f"{address}: the data set {repository} has no folder {below!r} with data; look on its page")
    return str(Path(folder, below))
