"""Suppresses orbax's and asyncio's own messages about failed checkpoints."""

import functools
import logging
import sys
import traceback
from pathlib import Path


def _in_orbax(e: BaseException | None) -> bool:
    return e is not None and any("orbax" in Path(f.filename).parts for f in traceback.extract_tb(e.__traceback__))


def _not_orbax(record: logging.LogRecord) -> bool:
    raised = record.exc_info[1] if record.exc_info else None
    return "orbax" not in Path(record.pathname).parts and not _in_orbax(raised)


@functools.cache
def quiet_orbax() -> None:
    """Keeps orbax's tracebacks (hundreds of lines for one full disk) off the terminal.

    Its failures are raised as exceptions, and the user sees one sentence. But orbax also logs them, and asyncio logs
    failures that nobody awaited. When one thread of orbax fails, the others find their event loop closed, which Python
    prints through `unraisablehook`.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_orbax)
    old_hook = sys.unraisablehook

    def hook(args) -> None:
        closed_loop = isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == "Event loop is closed"
        if not closed_loop and not _in_orbax(args.exc_value):
            old_hook(args)

    sys.unraisablehook = hook
