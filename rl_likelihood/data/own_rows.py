"""Converts the user's own rows to examples, and checks each row."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from rl_likelihood.data.records import BadRow, Location, Written, encodable, is_number, kind, written_number
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import ALTERNATIVES, ENVIRONMENT, REJECTED, Example

ROLES = ("system", "user", "assistant")
_COLUMNS = "the file is one object of columns; write JSON lines with df.to_json(..., orient='records', lines=True)"


@dataclasses.dataclass(frozen=True)
class Columns:
    """The field names of question, reference answer and chain in the user's files."""

    prompt: str = "prompt"
    answer: str = "answer"
    chain: str = "chain"


def read_rows(
    located: Iterable[tuple[Location, Any]], folder: str, columns: Columns, skip_bad_rows: bool
) -> tuple[list[Example], list[str]]:
    """(examples, bad rows as "file:line: reason").

    `folder`: prefix of the file in messages. Ids must be unique. Unless `skip_bad_rows`, the first bad row raises
    UserError.
    """
    examples, bad = [], []
    first: dict[str, Location] = {}
    for location, record in located:
        try:
            if isinstance(record, str):
                raise BadRow(record)
            row = to_example(record, location.id, columns)
            if first.setdefault(row.id, location) is not location:
                raise BadRow(f"id {row.id!r} is also that of {first[row.id]}")
            examples.append(row)
        except BadRow as e:
            bad.append(f"{folder}{location}: {e}")
            if not skip_bad_rows:
                cure = "mend the row, or leave such rows out with --config.data.skip_bad_rows=True"
                raise UserError(f"{bad[0]}; {cure}") from None
    return examples, bad


def to_example(record: dict[str, Any], default_id: str, columns: Columns) -> Example:
    """The record's Example; BadRow says what is wrong with it. `default_id`: for a record without an id.

    The question is a text, or a conversation (a list of messages with role and content) that ends with the user's
    message. A conversation may also be in the field "messages". Without an answer, its last message is the answer, if
    it is the assistant's. An answer may be a number. Null counts as a missing field; unknown fields are ignored.
    """
    row = {field: value for field, value in record.items() if value is not None}
    if "messages" in row and columns.prompt in row and columns.prompt != "messages":
        raise BadRow(f"both {columns.prompt!r} and 'messages' are given; keep one")
    field = columns.prompt if columns.prompt in row else "messages"
    if field not in row:
        raise BadRow(_missing(record, columns, "prompt"))
    both = (row[field], row.get(columns.answer))
    if all(isinstance(value, list) and value and isinstance(value[0], str) for value in both):
        raise BadRow(_COLUMNS)
    messages: tuple[tuple[str, str], ...] = ()
    if field == "messages" or isinstance(row[field], list):
        messages = _parse_messages(row[field], field, columns.answer in row)
        if columns.answer not in row and messages[-1][0] == "assistant":
            row[columns.answer], messages = messages[-1][1], messages[:-1]
        row[field] = messages[-1][1]
    if columns.answer not in row:
        raise BadRow(_missing(record, columns, "answer"))
    prompt = _text(row[field], field)
    row[columns.answer] = answer = _answer(row[columns.answer], columns.answer)  # it may be the chain's column too
    chain, task = (_text(row.get(name, ""), name, needed=False) for name in (columns.chain, "task"))
    uid = row.get("id", default_id)
    if is_number(uid) and uid == int(uid):  # pandas turns integers into floats where one is missing
        uid = int(uid)
    whole = isinstance(uid, int) or (isinstance(uid, Written) and uid.lstrip("-").isdigit())
    text = _is_text(uid) and encodable(uid)
    if isinstance(uid, bool) or not (whole or text):
        raise BadRow(f"field 'id' must be text or an integer, not {kind(uid)}")
    check = {}
    if ENVIRONMENT in row:
        if not isinstance(row[ENVIRONMENT], dict):
            raise BadRow(f"field {ENVIRONMENT!r} must be an object, not {kind(row[ENVIRONMENT])}")
        check[ENVIRONMENT] = _numbers(row[ENVIRONMENT])
    if ALTERNATIVES in row:
        if not isinstance(row[ALTERNATIVES], list):
            raise BadRow(f"field {ALTERNATIVES!r} must be a list of answers, not {kind(row[ALTERNATIVES])}")
        check[ALTERNATIVES] = [_answer(value, f"{ALTERNATIVES}[{i}]") for i, value in enumerate(row[ALTERNATIVES])]
    if isinstance(row.get(REJECTED), list):
        with contextlib.suppress(BadRow):  # for option_prob; other values of this field have other uses
            check[REJECTED] = [_answer(value, REJECTED) for value in row[REJECTED]]
    messages = messages if len(messages) > 1 else ()
    return Example(str(uid), prompt, answer.strip(), chain.strip(), task, messages, json.dumps(check) if check else "")


def _text(value: Any, field: str, needed: bool = True) -> str:
    if not _is_text(value):
        raise BadRow(f"field {field!r} must be a string, not {kind(value)}")
    if not encodable(value):
        raise BadRow(f"field {field!r} holds half of a surrogate pair, which is not text")
    if needed and not value.strip():
        raise BadRow(f"field {field!r} is empty")
    return value


def _answer(value: Any, field: str) -> str:
    """A text, or a number as its file writes it, or for binary files as people write it."""
    if isinstance(value, Written):
        return str(value)
    if is_number(value):
        return written_number(value)
    if isinstance(value, float | Decimal):
        raise BadRow(f"field {field!r} must be text or a finite number")
    return _text(value, field)


def _numbers(value: Any) -> Any:
    """The environment with every `Written` number converted to a number. BadRow for what JSON cannot hold."""
    if isinstance(value, Written):
        try:
            return json.loads(value)
        except ValueError:  # Python reads integers of up to 4,300 digits
            raise BadRow(f"field {ENVIRONMENT!r} holds an integer of {len(value):,} digits; write it as text") from None
    if not isinstance(value, dict | list | tuple | str | int | float | None):  # a map of parquet is a list of tuples
        raise BadRow(f"field {ENVIRONMENT!r} holds a {type(value).__name__}, which is not JSON; write a number or text")
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    return [_numbers(v) for v in value] if isinstance(value, list | tuple) else value


def _missing(record: dict[str, Any], columns: Columns, column: str) -> str:
    name = getattr(columns, column)
    if name in record:
        return f"field {name!r} is null; write the {column}"
    first = {field: value[0] for field, value in record.items() if isinstance(value, list) and value}
    rows = [field for field, value in first.items() if isinstance(value, dict) and name in value]
    if rows:
        return f"field {rows[0]!r} holds the rows; write that list alone into a file"
    if record and all(field.isdigit() for field in record):  # as pandas writes by default
        return _COLUMNS
    fields = ", ".join([field for field, value in record.items() if value is not None][:8]) or "no field"
    return (
        f"field {name!r} is missing (the row has {fields}); "
        f"if another field has it, name it with --config.data.{column}_column=NAME"
    )


def _parse_messages(value: Any, field: str, answered: bool) -> tuple[tuple[str, str], ...]:
    """(role, content) of every message. The last must be the user's, or without an answer field the assistant's."""
    if not isinstance(value, list) or not value:
        raise BadRow(f"field {field!r} must be a list with at least one message")
    turns = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not _is_text(message.get("content")):
            raise BadRow(f"field '{field}[{i}]' must be an object with string fields 'role' and 'content'")
        if message.get("role") not in ROLES:
            raise BadRow(f"field '{field}[{i}].role' is {message.get('role')!r}; use one of {', '.join(ROLES)}")
        turns.append((message["role"], _text(message["content"], f"{field}[{i}].content", needed=False)))
    last = turns[-1][0]
    if last == "assistant" and not answered:
        if [role for role, _ in turns[-2:-1]] != ["user"]:
            raise BadRow(f"the last of {field!r} is taken for the answer, and the one before it must be from the user")
    elif last != "user":
        also = ", as there is an answer beside it" if answered else ""
        raise BadRow(f"the last of {field!r} must be from the user, not the {last}{also}")
    return tuple(turns)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Written)
