"""Reads records from files: JSON lines, a JSON array or object, parquet or text, each plain or compressed (.gz)."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from rl_likelihood.errors import UserError

SUFFIXES = (".json", ".jsonl", ".parquet")
# Other formats of rows, and how they become one that is read.
UNREAD = {".arrow": "write parquet with ds.to_parquet(...)"}
UNREAD |= dict.fromkeys(
    (".csv", ".tsv", ".xlsx"), "write JSON lines with df.to_json(..., orient='records', lines=True)"
)
# The first bytes of packed files, and what is said of one whose name does not tell.
PACKED = {
    b"\x1f\x8b": "is compressed by gzip; give it a name that ends in .gz",
    b"PK\x03\x04": "is a zip archive; give it a name that ends in .zip",
    b"PAR1": "is a parquet file; give it a name that ends in .parquet",
    b"\xfd7zXZ\0": "is compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it",
}


class Location(NamedTuple):
    """Where a record is, for ids and for messages."""

    file: str  # path below the source; a member of an archive follows the archive's name
    number: int  # from 1
    unit: str  # line | row
    key: str = ""  # the record's key, if the file is an object of records
    split: str = ""  # train | validation | test, from the path; "" if the path names none

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" if self.unit == "line" else f"{self.file} row {self.number}"

    @property
    def id(self) -> str:
        return self.key or f"{self.file}:{self.number}"


class BadRow(ValueError):
    """A record that does not fit its format; the message follows "file:line: "."""


class Written(str):
    """A JSON number as its file writes it: 1.50 stays 1.50, and 0.0000001 does not become 1e-07."""


def records(
    name: str, data: bytes, split: str = "", as_written: bool = False, text: bool = False
) -> Iterator[tuple[Location, Any]]:
    """Yields (location, record) for the contents `data` of the file `name`.

    A str in place of a record says what is wrong with it. With `as_written`, JSON numbers are `Written`. With `text`, a
    .txt file is one text, also if it begins as JSON does: [Illustration].
    """
    plain = name.lower()
    if plain.endswith(".gz"):
        plain = plain.removesuffix(".gz")
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, zlib.error, EOFError) as e:
            raise UserError(f"{name} cannot be unpacked ({e}); fetch or compress it again") from e
    if plain.endswith(".parquet"):
        for n, record in enumerate(_parquet(name, data), start=1):
            yield Location(name, n, "row", split=split), record
        return
    data = data.removeprefix(b"\xef\xbb\xbf")
    _refuse_other_formats(name, data, plain)
    if plain.endswith(".txt") and (text or data.lstrip()[:1] not in (b"[", b"{")):
        yield Location(name, 1, "row", name, split), _text(data)
        return
    if _is_lines(data, plain):
        # Bytes are split only at \n, \r\n and \r, because U+2028 and the like are legal inside a JSON string.
        for n, line in enumerate(data.splitlines(), start=1):
            if line.strip():
                yield Location(name, n, "line", split=split), _line(line, as_written)
        return
    whole = _whole(name, data, as_written)
    if isinstance(whole, dict) and whole and all(isinstance(v, dict) for v in whole.values()):
        for n, (key, record) in enumerate(whole.items(), start=1):
            yield Location(name, n, "row", key, split), record
    elif isinstance(whole, dict):
        yield Location(name, 1, "row", name, split), whole
    elif isinstance(whole, list):
        for n, record in enumerate(whole, start=1):
            yield Location(name, n, "row", split=split), _object(record)
    else:
        raise UserError(f"{name} holds no records but {kind(whole)}; it should be a list of objects")


def _refuse_other_formats(name: str, data: bytes, plain: str) -> None:
    """UserError for contents in another format, because a message about the first bad row would be misleading."""
    _, first = re.match(rb"(\s*)([^\r\n]*)", data).groups()
    problem, suffix = "", plain[plain.rfind(".") :]
    if suffix in UNREAD and first[:1] not in (b"{", b"["):  # JSON is JSON, whatever its file is called
        problem = f"is not read: rows of {suffix} files are not supported; {UNREAD[suffix]}"
    elif packed := next((words for begin, words in PACKED.items() if data.startswith(begin)), ""):
        problem = packed
    elif (encoding := json.detect_encoding(data)[:6]) != "utf-8" and data.strip(b"\0"):
        problem = f"is {encoding.upper()} text; save it as UTF-8"
    elif first.startswith(b"version https://git-lfs"):
        problem = "is a pointer of git-lfs, not the file itself; fetch it with git lfs pull"
    elif first[:1] == b"<" and not plain.endswith(".txt"):
        problem = "is a web page (HTML) or XML; download the file itself"
    elif first and plain.endswith(".jsonl") and str(_line(first, False)).startswith("not JSON ("):
        if not re.search(rb"(?m)^\s*[\[{]", data):
            problem = (
                f"is no JSON (it begins {first.decode()[:40]!r}); write one JSON object a line, an array, or parquet"
            )
        elif first[:1] == b"{" and (lines := _lines_of_first(data)) > 1:
            problem = f"has one object on {lines} lines; write each row on one line, or all rows as one list [...]"
    if problem:
        raise UserError(f"{name} {problem}")


def _lines_of_first(data: bytes) -> int:
    """How many lines the JSON value has that a file begins with; 0 if there is none."""
    text = data.decode(errors="replace").lstrip()
    try:
        return text.count("\n", 0, json.JSONDecoder().raw_decode(text)[1]) + 1
    except (ValueError, RecursionError):
        return 0


def written_number(value: float | int | Decimal) -> str:
    """A binary number as people write it: 43.0 is "43", 1e-05 is "0.00001"."""
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(int(value)) if value == int(value) else format(Decimal(repr(value)), "f")


def is_number(value: Any) -> bool:
    """Whether a record's value is a finite number."""
    try:
        return isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def encodable(value: Any) -> bool:
    """Whether no text in a JSON value holds half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
        return True
    except UnicodeEncodeError:
        return False


def refuse_no_text(value: Any, where: str) -> None:
    """UserError for a JSON value that is not `encodable`."""
    if not encodable(value):
        raise UserError(f"{where}: a text holds half of a surrogate pair, which is not text; remove it")


def kind(value: Any) -> str:
    """The type of a record's value, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true/false", type(None): "null"}
    number = isinstance(value, Written | int | float | Decimal)
    return names.get(type(value), "a number" if number else f"a value of type {type(value).__name__}")


def reason(e: Exception) -> str:
    """The first line of an error's message."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


def _is_lines(data: bytes, name: str) -> bool:
    """Whether the contents are JSON lines. A JSON array is recognised even in a .jsonl file."""
    first, *rest_of_lines = re.split(rb"\r\n?|\n", data.strip(), maxsplit=1)
    if name.endswith(".jsonl"):
        return not first.startswith(b"[") or (bool(rest_of_lines) and _is_json(first))
    return bool(rest_of_lines) and isinstance(_line(first, False), dict)


def _is_json(line: bytes) -> bool:
    value = _line(line, False)
    return isinstance(value, dict) or value.startswith("not a JSON object")


def _load(text: bytes, as_written: bool) -> Any:
    hooks = {"parse_int": Written, "parse_float": Written, "object_pairs_hook": _once} if as_written else {}
    return json.loads(text.decode("utf-8"), **hooks)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of a user's row. Refuses a repeated key, because its value would be ambiguous."""
    names = [name for name, _ in pairs]
    twice = [name for name in dict(pairs) if names.count(name) > 1] if len(names) > len(set(names)) else []
    if twice:
        raise BadRow(f"key {twice[0]!r} stands twice in one object")
    return dict(pairs)


def _line(line: bytes, as_written: bool) -> dict | str:
    try:
        return _object(_load(line, as_written))
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except BadRow as e:
        return str(e)
    except (ValueError, RecursionError) as e:
        if re.search(rb"}\s*,\s*$", line) and isinstance(_line(line.rstrip()[:-1], as_written), dict):
            return "a comma follows the object; remove it, or put all rows in one list [...]"
        return f"not JSON ({getattr(e, 'msg', None) or 'nested too deeply or a number too long'})"


def _object(value: Any) -> dict | str:
    return value if isinstance(value, dict) else f"not a JSON object but {kind(value)}"


def _text(data: bytes) -> dict[str, str] | str:
    """The record of a plain text file."""
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError as e:
        return f"not UTF-8 text (byte {e.start})"


def _whole(name: str, data: bytes, as_written: bool) -> Any:
    """The file's single JSON value."""
    try:
        return _load(data, as_written)
    except UnicodeDecodeError as e:
        raise UserError(f"{name} is not UTF-8 text (byte {e.start}); fetch it again") from e
    except BadRow as e:
        raise UserError(f"{name}: {e}; mend the file") from e
    except json.JSONDecodeError as e:
        problem = "the JSON array that it begins is broken" if data.lstrip().startswith(b"[") else "not JSON"
        if not name.lower().removesuffix(".gz").endswith(SUFFIXES):
            problem = "neither JSON lines nor a JSON array (nor is the file named .parquet)"
        raise UserError(f"{name}:{e.lineno}: {problem} ({e.msg}); mend the file, or write one object a line") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{name} is not JSON (nested too deeply or a number too long); fetch it again") from e


def _short(value: Any, of: Any) -> Any:
    """A value of parquet with its single floats as people write them, also in lists, structs and maps: 0.1 is 0.1."""
    if isinstance(value, list) and hasattr(of, "value_type"):
        return [_short(v, of.value_type) for v in value]
    if isinstance(value, list) and hasattr(of, "item_type"):  # a map is a list of pairs
        return [(_short(k, of.key_type), _short(v, of.item_type)) for k, v in value]
    if isinstance(value, dict):
        return {name: _short(v, of.field(name).type) for name, v in value.items()}
    return float(str(of.to_pandas_dtype()(value))) if str(of) in ("float", "halffloat") and value is not None else value


def _parquet(name: str, data: bytes) -> Iterator[dict]:
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(io.BytesIO(data)).iter_batches(batch_size=1024):
            short = [field for field in batch.schema if "float" in str(field.type)]
            for row in batch.to_pylist():
                yield row | {field.name: _short(row[field.name], field.type) for field in short}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:  # the last two from a damaged page
        raise UserError(f"{name} is not a readable parquet file ({reason(e)}); fetch it again") from e
