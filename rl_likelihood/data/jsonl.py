"""Questions in files of JSON lines, checked line by line."""

from __future__ import annotations

import difflib
import gzip
import json
import math
import zlib
from pathlib import Path

from rl_likelihood.shapes import Example, UserError

ROLES = ("system", "user", "assistant")


def read_jsonl(path: str, field: str, skip_bad_rows: bool) -> tuple[list[Example], list[str]]:
    """Rows of a file of JSON lines, and what is wrong with the others ("file:line: reason").

    A line is {"prompt", "answer"} or {"messages": [{"role", "content"}, ...], "answer"}, each with optional
    "id", "task" and "chain"; a field that is null is not there, other fields are ignored, blank lines skipped, and
    white space around an answer is dropped. Without "answer" it is the last message, if that is the assistant's; a
    number is its JSON text. An id belongs to one row. A file named .gz is unpacked. The first bad row is refused
    unless `skip_bad_rows`.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        if file.is_dir():
            raise UserError(f"{field} = {path} is a folder; name a file of JSON lines in it")
        siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, siblings, n=1)
        hint = f"did you mean {file.parent / near[0]}?" if near else "check the path"
        raise UserError(f"{field} = {path} does not exist; {hint}")
    try:
        data = file.read_bytes()
        if file.suffix == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, zlib.error, EOFError) as e:
        raise UserError(f"{field} = {path} cannot be unpacked ({e}); fetch or compress it again") from e
    except OSError as e:
        raise UserError(f"{field} = {path} cannot be read ({e.strerror}); check its permissions") from e
    examples, bad = [], []
    lines: dict[str, int] = {}  # id -> its line
    # Bytes are split on \n alone: U+2028 and friends are legal inside a JSON string.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        row = _parse_row(line, f"{file.name}:{number}")
        if isinstance(row, Example):
            first = lines.setdefault(row.id, number)
            if first == number:
                examples.append(row)
                continue
            row = f"id {row.id!r} is also that of line {first}"
        bad.append(f"{path}:{number}: {row}")
        if not skip_bad_rows:
            raise UserError(f"{bad[0]}; mend the line, or set data.skip_bad_rows=True to leave such lines out")
    return examples, bad


def _parse_row(line: bytes, name: str) -> Example | str:
    """The line's Example, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except (ValueError, RecursionError) as e:
        return f"not JSON ({getattr(e, 'msg', None) or 'nested too deeply or a number too long'})"
    if not isinstance(row, dict):
        return f"not a JSON object but {_kind(row)}"

    row = {field: value for field, value in row.items() if value is not None}
    messages: tuple[tuple[str, str], ...] = ()
    if "messages" in row:
        if "prompt" in row:
            return "both 'prompt' and 'messages' are given; keep one"
        parsed = _parse_messages(row["messages"], "answer" in row)
        if isinstance(parsed, str):
            return parsed
        if "answer" not in row and parsed[-1][0] == "assistant":
            row["answer"], parsed = parsed[-1][1], parsed[:-1]
        messages, prompt = parsed, parsed[-1][1]
    elif "prompt" not in row:
        return "field 'prompt' is missing"
    else:
        prompt = row["prompt"]
    if "answer" not in row:
        return "field 'answer' is missing"
    answer = row["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
        answer = json.dumps(answer)
    texts = {"prompt": prompt, "answer": answer, "task": row.get("task", ""), "chain": row.get("chain", "")}
    for field, value in texts.items():
        if not isinstance(value, str):
            return f"field {field!r} must be a string, not {_kind(value)}"
        if not _encodable(value):
            return f"field {field!r} holds half of a surrogate pair, which is not text"
    for field in ("prompt", "answer"):
        if not texts[field].strip():
            return f"field {field!r} is empty"
    uid = row.get("id", name)
    if isinstance(uid, bool) or not isinstance(uid, str | int) or not _encodable(str(uid)):
        return f"field 'id' must be text or an integer, not {_kind(uid)}"
    return Example(
        id=str(uid),
        prompt=prompt,
        answer=texts["answer"].strip(),
        chain=texts["chain"].strip(),
        task=texts["task"],
        messages=messages if len(messages) > 1 else (),
    )


def _parse_messages(value, answered: bool) -> tuple[tuple[str, str], ...] | str:
    """(role, content) of every turn; the last is the user's, or the assistant's answer where there is no other."""
    if not isinstance(value, list) or not value:
        return "field 'messages' must be a list with at least one message"
    turns = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return f"field 'messages[{i}]' must be an object with string fields 'role' and 'content'"
        if message.get("role") not in ROLES:
            return f"field 'messages[{i}].role' is {message.get('role')!r}; use one of {', '.join(ROLES)}"
        if not _encodable(message["content"]):
            return f"field 'messages[{i}].content' holds half of a surrogate pair, which is not text"
        turns.append((message["role"], message["content"]))
    last = turns[-1][0]
    if last == "assistant" and not answered:
        if [role for role, _ in turns[-2:-1]] != ["user"]:
            return "the last of 'messages' is taken for the answer, and the one before it must be from the user"
    elif last != "user":
        also = ", as the reference is in 'answer'" if answered else ""
        return f"the last of 'messages' must be from the user, not the {last}{also}"
    return tuple(turns)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a string", "bool": "true/false", "NoneType": "null"}
    return names.get(type(value).__name__, "a number")
