"""Bad input: its error, the exit codes of commands, and errors of a user's own Python file."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

# Exit codes: after bad input, where a restart would fail too; after Ctrl-C; after the reader of a pipe has gone.
REFUSED, INTERRUPTED, UNREAD = 2, 130, 141


class UserError(ValueError):
    """Bad input, explained in the user's words. The mains print it on one line and exit with code 2."""


def exits(main: Callable[..., int]) -> Callable[..., int]:
    """Decorates the main of a short command: after bad input or Ctrl-C it returns that exit code; one line says why."""

    @functools.wraps(main)
    def guarded(*args: Any) -> int:
        try:
            code = main(*args)
            print(end="", flush=True)  # short output waits in the buffer: whether its reader is there shows here
            return code
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return REFUSED
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # of `| head`, which has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
            return UNREAD

    return guarded


class Parser(argparse.ArgumentParser):
    """The flags of a short command. A wrong one is a UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


_FOLDERS = (*(sysconfig.get_path(p) for p in ("stdlib", "purelib", "platlib")), str(Path(__file__).parent))
_LIBRARIES = ("<frozen ", *(f"{folder}{os.sep}" for folder in _FOLDERS))


def located(error: BaseException) -> str:
    """An error of a user's Python file with the line of theirs that led to it: FILE:LINE: NameError: ...

    Of errors that followed from one another, it is the last that was raised below a line of theirs.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_LIBRARIES)]
    before = error.__cause__ or error.__context__
    if not isinstance(error, SyntaxError) and not frames and before is not None:
        return located(before)
    where = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    if isinstance(error, SyntaxError) and Path(error.filename or "").is_file():
        where = f"{error.filename}:{error.lineno}: "
    message = error.args[0] if isinstance(error, (KeyError, SyntaxError)) and error.args else error
    return f"{where}{type(error).__name__}: {' '.join(str(message).split())}".removesuffix(": ")


@contextlib.contextmanager
def user_code(file: str = "") -> Iterator[None]:
    """Whatever goes wrong in a user's Python file is a UserError that says where, at least in which `file`."""
    try:
        yield
    except (Exception, SystemExit) as error:
        why = str(error) if isinstance(error, UserError) else located(error)
        if Path(file).name not in why:
            raise UserError(f"{file}: {why}") from error
        if isinstance(error, UserError):
            raise
        raise UserError(why) from error
