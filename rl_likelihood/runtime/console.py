"""What a run says to a person, from the first of several processes."""

from __future__ import annotations

import os

from rl_likelihood.runtime import distributed


def say(text: str) -> None:
    """One line to the console, at once, from the first of several processes."""
    if distributed.first():
        print(text, flush=True)


def say_at_once(text: str) -> None:
    """`say` for the handler of a signal, which may come in the middle of a print: past Python's buffer, which would
    refuse to be entered twice."""
    if distributed.first():
        os.write(1, f"{text}\n".encode())


def duration(seconds: float) -> str:
    """Seconds as people say them: 42s, 3m12s, 2h05m, 3d04h."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"
