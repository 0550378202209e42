"""Converts the user's own rows to examples, and checks each row."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from rl_likelihood.data.records import Location, Written, encodable, is_number, kind, written_number
from rl_likelihood.shapes import ALTERNATIVES, ENVIRONMENT, REJECTED, Example, UserError

ROLES = ("system", "user", "assistant")


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
        row = record if isinstance(record, str) else to_example(record, location.id, columns)
        if isinstance(row, Example):
            if first.setdefault(row.id, location) is location:
                examples.append(row)
                continue
            row = f"id {row.id!r} is also that of {first[row.id]}"
        bad.append(f"{folder}{location}: {row}")
        if not skip_bad_rows:
            raise UserError(f"{bad[0]}; mend the row, or leave such rows out with --config.data.skip_bad_rows=True")
    return examples, bad


def to_example(record: dict[str, Any], default_id: str, columns: Columns) -> Example | str:
    """The record's Example, or a text that says what is wrong with it. `default_id`: for a record without an id.

    The question is a text, or a conversation (a list of messages with role and content) that ends with the user's
    message. A conversation may also be in the field "messages". Without an answer, its last message is the answer, if
    it is the assistant's. An answer may be a number. Null counts as a missing field; unknown fields are ignored.
    """
    row = {field: value for field, value in record.items() if value is not None}
    if "messages" in row and columns.prompt in row and columns.prompt != "messages":
        return f"both {columns.prompt!r} and 'messages' are given; keep one"
    field = columns.prompt if columns.prompt in row else "messages"
    if field not in row:
        return _missing(record, columns, "prompt")
    messages: tuple[tuple[str, str], ...] = ()
    if field == "messages" or isinstance(row[field], list):
        turns = _parse_messages(row[field], field, columns.answer in row)
        if isinstance(turns, str):
            return turns
        if columns.answer not in row and turns[-1][0] == "assistant":
            row[columns.answer], turns = turns[-1][1], turns[:-1]
        messages, row[field] = turns, turns[-1][1]
    if columns.answer not in row:
        return _missing(record, columns, "answer")
    texts = []
    for name, needed in ((field, True), (columns.answer, True), (columns.chain, False), ("task", False)):
        value = row.get(name, "")
        if name == columns.answer:
            value = _number_as_text(value)
            if isinstance(value, float | Decimal):
                return f"field {name!r} must be text or a finite number"
        problem = _problem(value, needed)
        if problem:
            return f"field {name!r} {problem}"
        texts.append(value)
    prompt, answer, chain, task = texts
    uid = row.get("id", default_id)
    whole = isinstance(uid, int) or (isinstance(uid, Written) and uid.lstrip("-").isdigit())
    text = _is_text(uid) and encodable(uid)
    if isinstance(uid, bool) or not (whole or text):
        return f"field 'id' must be text or an integer, not {kind(uid)}"
    check = {}
    if ENVIRONMENT in row:
        if not isinstance(row[ENVIRONMENT], dict):
            return f"field {ENVIRONMENT!r} must be an object, not {kind(row[ENVIRONMENT])}"
        check[ENVIRONMENT] = _numbers(row[ENVIRONMENT])
    if ALTERNATIVES in row:
        if not isinstance(row[ALTERNATIVES], list):
            return f"field {ALTERNATIVES!r} must be a list of answers, not {kind(row[ALTERNATIVES])}"
        check[ALTERNATIVES] = [_number_as_text(value) for value in row[ALTERNATIVES]]
        problem = next(filter(None, (_problem(value, True) for value in check[ALTERNATIVES])), "")
        if problem:
            return f"an answer of field {ALTERNATIVES!r} {problem}"
    rejected = row.get(REJECTED)
    if isinstance(rejected, list) and not any(_problem(value, True) for value in rejected):
        check[REJECTED] = rejected  # for option_prob; other values of this field have other uses
    messages = messages if len(messages) > 1 else ()
    return Example(str(uid), prompt, answer.strip(), chain.strip(), task, messages, json.dumps(check) if check else "")


def _number_as_text(value: Any) -> Any:
    """A number as text: as its file writes it, or for binary files as people write it. Other values are unchanged."""
    if isinstance(value, Written):
        return str(value)
    return written_number(value) if is_number(value) else value


def _numbers(value: Any) -> Any:
    """The value with every `Written` number converted to a number."""
    if isinstance(value, Written):
        return json.loads(value)
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    return [_numbers(v) for v in value] if isinstance(value, list) else value


def _problem(value: Any, needed: bool) -> str:
    """What is wrong with a text, or ""."""
    if not _is_text(value):
        return f"must be a string, not {kind(value)}"
    if not encodable(value):
        return "holds half of a surrogate pair, which is not text"
    return "is empty" if needed and not value.strip() else ""


def _missing(record: dict[str, Any], columns: Columns, column: str) -> str:
    name = getattr(columns, column)
    if name in record:
        return f"field {name!r} is null; write the {column}"
    first = {field: value[0] for field, value in record.items() if isinstance(value, list) and value}
    rows = [field for field, value in first.items() if isinstance(value, dict) and name in value]
    if rows:
        return f"field {rows[0]!r} holds the rows; write that list alone into a file"
    if record and all(field.isdigit() for field in record):  # as pandas writes by default
        return "the file is one object of columns; write JSON lines with df.to_json(..., orient='records', lines=True)"
    fields = ", ".join([field for field, value in record.items() if value is not None][:8]) or "no field"
    return (
        f"field {name!r} is missing (the row has {fields}); "
        f"if another field has it, name it with --config.data.{column}_column=NAME"
    )


def _parse_messages(value: Any, field: str, answered: bool) -> tuple[tuple[str, str], ...] | str:
    """(role, content) of every message, or what is wrong with them. The last must be the user's, or without an answer
    field the assistant's."""
    if not isinstance(value, list) or not value:
        return f"field {field!r} must be a list with at least one message"
    turns = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not _is_text(message.get("content")):
            return f"field '{field}[{i}]' must be an object with string fields 'role' and 'content'"
        if message.get("role") not in ROLES:
            return f"field '{field}[{i}].role' is {message.get('role')!r}; use one of {', '.join(ROLES)}"
        if not encodable(message["content"]):
            return f"field '{field}[{i}].content' holds half of a surrogate pair, which is not text"
        turns.append((message["role"], message["content"]))
    last = turns[-1][0]
    if last == "assistant" and not answered:
        if [role for role, _ in turns[-2:-1]] != ["user"]:
            return f"the last of {field!r} is taken for the answer, and the one before it must be from the user"
    elif last != "user":
        also = ", as there is an answer beside it" if answered else ""
        return f"the last of {field!r} must be from the user, not the {last}{also}"
    return tuple(turns)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Written)
