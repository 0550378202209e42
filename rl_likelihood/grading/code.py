"""Graders of structured answers: tool calls, the output of a program, programs that must pass tests.

How references are written:

    tool_call    {"name": "get_line", "arguments": {"id": "L1"}}, or a JSON list of such calls; or with the names of
                 each call's arguments that count, null for all: {"calls": the calls as text, "compare_args": [["id"]]}
    code_output  the output as a Python literal: [(4, 1), (2, 3)]
    code_tests   {"prompt": "def f(x):\\n", "test": "def check(candidate):\\n    ...", "entry_point": "f"}
                 with "script": true the answer is a whole script, which runs after the prompt, and candidate(text)
                 is what it prints for an input
                 with "defines": ["A", "g"] the last code fence that defines one of these names counts, else the last
"""

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Iterator
from typing import Any

from rl_likelihood.grading.calls import FENCE, Call, calls_in, fenced_in, finite, outdented
from rl_likelihood.grading.run_code import Check, Limits, Outcome, run_program
from rl_likelihood.grading.text import exact_match

_LONGEST_LITERAL = 10_000  # characters
_LONGEST_PROGRAM = 100_000

COMPARED = "compare_args"  # in the example's `check`: a list for each reference call


def _same(a: Any, b: Any) -> bool:
    """Equality of JSON: 1 is 1.0 but not true, objects have no order, lists do."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return a == b


def tool_call(reference: str, answer: str | None) -> bool:
    """The same calls in the same order: names equal, arguments equal whatever their order.

    Calls are read as `grading/calls.py` says. Every argument counts on both sides: an argument left out is wrong
    (tau2's rule lets it pass), unless the reference says which count. Compared as text where it is not a call.
    """
    if answer is None:
        return False
    goal, compared = _goal(reference)
    if goal is None:
        return exact_match(reference, answer)
    given = calls_in(answer)
    if given is None or len(given) != len(goal):
        return False
    try:
        return all(map(_same_call, goal, given, compared))
    except RecursionError:
        return False


def _goal(reference: str) -> tuple[list[Call] | None, list[list[str] | None]]:
    """The reference calls, and of each the arguments that count (None: all)."""
    calls = calls_in(reference)
    if calls is not None:
        return calls, [None] * len(calls)
    try:
        told = json.loads(reference)
        calls, compared = calls_in(told["calls"]), told[COMPARED]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, []
    fits = calls is not None and isinstance(compared, list) and len(compared) == len(calls)
    return (calls, compared) if fits else (None, [])


def _same_call(goal: Call, given: Call, compared: list[str] | None) -> bool:
    if compared is None:
        return goal.name == given.name and _same(goal.arguments, given.arguments)
    of = lambda call: {name: call.arguments[name] for name in compared if name in call.arguments}
    return goal.name == given.name and _same(of(goal), of(given))


def code_output_quick(reference: str, answer: str | None) -> bool | None:
    """`code_output` where nothing need be parsed; None where it must."""
    if answer is None:
        return False
    if exact_match(reference, answer):
        return True
    return False if len(answer) > _LONGEST_LITERAL else None


def code_output(reference: str, answer: str | None) -> bool | None:
    """CRUXEval-O: the answer is a Python literal of the reference's value (1 == 1.0 == True, as Python has it).

    A code fence, backticks, and an assertion "f(...) == literal" are looked into. Compared as text where the
    reference is not a literal. Answers over 10,000 characters are compared as text. Python says that reading a hostile
    literal may end the process: see `Pool`.
    """
    quick = code_output_quick(reference, answer)
    if quick is not None:
        return quick
    assert answer is not None
    goal = _literal(reference)
    if goal is None:
        return False  # text, and not the same
    fenced = FENCE.fullmatch(answer.strip())
    text = (fenced["code"] if fenced else answer.strip().strip("`")).strip()
    if not _only_values(text):
        return False
    given = _literal(text) or _compared(text)
    try:
        return given is not None and bool(given[0] == goal[0])
    except RecursionError:
        return False


def _only_values(text: str) -> bool:
    """Python without a comment, which may say anything, and with numbers that a float can hold, unlike 1e400."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                return False
            if token.type == tokenize.NUMBER and re.fullmatch("0*[^0xXoObB].*[.eEjJ].*|0*[.eEjJ].*", token.string):
                finite(token.string.rstrip("jJ"))
        return True
    except (ValueError, SyntaxError, tokenize.TokenError):
        return False


def _compared(text: str) -> tuple[Any] | None:
    """The value of f(1, 2) == [3], with or without assert: one call of f with literals, and one literal."""
    match _statements(text):
        case [
            ast.Assert(ast.Compare(call, [ast.Eq()], [value]), None) | ast.Expr(ast.Compare(call, [ast.Eq()], [value]))
        ]:
            match call:
                case ast.Call(ast.Name("f"), args, named) if all(map(_literal, (*args, *(k.value for k in named)))):
                    return _literal(value)
    return None


def _statements(program: str) -> list[ast.stmt]:
    """A program's statements; none of what Python cannot read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes are the model's, not ours
            return ast.parse(program).body
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []


def _with_branches(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, and those in their branches: if, try, with, loops. Not those of functions and classes."""
    for node in statements:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _with_branches(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _with_branches(handler.body)


def _literal(text: str | ast.expr) -> tuple[Any] | None:
    """A 1-tuple with the value, which may itself be None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (ast.literal_eval(text.strip() if isinstance(text, str) else text),)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def code_tests_quick(reference: str, answer: str | None) -> bool | None:
    """`code_tests` where nothing need be run; None where it must."""
    return False if answer is None or not answer.strip() or len(answer) > _LONGEST_PROGRAM else None


def code_tests(reference: str, answer: str | None, limits: Limits | None = None) -> bool | None:
    """HumanEval: check(entry_point) does not raise (`run_code.run_program`, default limits).

    The tests run in a process of their own and call the program's function: values are plain data. Python's standard
    library only. Time over, memory over, an early exit are wrong answers. None where the reference cannot be read or
    the machine cannot run or isolate programs.
    """
    quick = code_tests_quick(reference, answer)
    if quick is not None:
        return quick
    assert answer is not None
    try:
        task = json.loads(reference)
        parts = [task["prompt"], task["test"], task["entry_point"]]
        script = task.get("script") is True
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not all(isinstance(part, str) for part in parts):
        return None
    if not _statements(answer):
        answer = outdented(answer)
    parts[0] = _completed(parts[0], parts[2], answer)
    try:
        check = Check(*parts)
        if script:
            program = script_program(check.setup, check.entry_point, answer)
        else:
            program = assembled_program(check.setup, check.entry_point, answer, task.get("defines", []))
        return run_program(program, limits, check).outcome is Outcome.PASSED
    except OSError:  # no process, no file: nobody's wrong answer
        return None


def _completed(prompt: str, entry_point: str, answer: str) -> str:
    """The prompt; with a body if it is no more than a function's head and the answer is a whole definition."""
    whole = any(_defines(code, entry_point) for code in (answer, *fenced_in(answer)))
    if not whole or not prompt.strip() or _statements(prompt):
        return prompt
    head = prompt.rstrip()
    last = head.rpartition("\n")[2]
    return f"{head}\n{last[: len(last) - len(last.lstrip())]}    pass\n"


def code_tests_unsafe(reference: str, answer: str | None) -> bool | None:
    """`code_tests` where the machine need not keep network and files from the program."""
    return code_tests(reference, answer, Limits(namespaces=None))


def assembled_program(prompt: str, entry_point: str, answer: str, defines: list[str]) -> str:
    """The program whose function is called: the prompt and the answer.

    The answer goes on after the prompt, as a body or as a whole new definition. Of an answer with code fences, the
    first one counts whose code defines the entry point, or else the first; with `defines`, see the module.
    """
    fences = _fences(answer)
    if fences:
        names, at = (defines, -1) if defines else ([entry_point], 0)
        answer = ([code for code in fences if any(_defines(code, name) for name in names)] or fences)[at]
    return f"{prompt}{answer}\n"


# The input is a file and descriptor 0, for programs that read either; what is printed comes back. exit() is an end.
_SCRIPT = """
def {entry_point}(text):
    import io, os, sys
    with open("input", "w") as file:
        file.write(text)
    given = os.open("input", os.O_RDONLY)
    if given:  # 0 itself, after a program that closed it
        os.dup2(given, 0)
        os.close(given)
    out = io.TextIOWrapper(io.BytesIO(), write_through=True)
    before = sys.stdin, sys.stdout
    sys.stdin, sys.stdout = open(0, closefd=False), out
    try:
        names = {{"__name__": "__main__", "exit": sys.exit, "quit": sys.exit}}
        exec({prompt!r}, names)
        exec(compile({source!r}, "script", "exec", dont_inherit=True), names)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    finally:
        sys.stdin, sys.stdout = before
    return out.buffer.getvalue().decode()
"""


def script_program(prompt: str, entry_point: str, answer: str) -> str:
    """A program whose function runs the prompt, then the answer or its last code fence, as a script."""
    fences = _fences(answer)
    return _SCRIPT.format(prompt=prompt, entry_point=entry_point, source=fences[-1] if fences else answer)


def _fences(answer: str) -> list[str]:
    """The code in the fences of a text; none where all of it is a program, whose marks are in its docstrings."""
    return [] if _statements(answer) else fenced_in(answer)


def _defines(code: str, name: str) -> bool:
    """Does a program define this name at its top level, in a branch or not?"""
    for node in _with_branches(_statements(code)):
        match node:
            case ast.FunctionDef(defined) | ast.AsyncFunctionDef(defined) | ast.ClassDef(defined) if defined == name:
                return True
            case ast.Assign(targets) if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                return True
            case ast.AnnAssign(ast.Name(defined)) if defined == name:
                return True
    return False
