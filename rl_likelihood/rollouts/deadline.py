"""A deadline for a whole call of an httpx client: connecting, headers and content. httpx limits each read by itself."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import httpcore
import httpx


class Deadline(threading.local):
    """The time at which the current call of a thread has to end. httpx closes the connection of a call that fails."""

    due = math.inf

    def begin(self, seconds: float) -> None:
        """Gives the thread's next call so many seconds."""
        self.due = time.monotonic() + seconds

    def left(self, timeout: float | None) -> float:
        """The seconds for one operation, at most `timeout`."""
        seconds = self.due - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout("the call takes too long")
        return seconds if timeout is None else min(timeout, seconds)

    def apply(self, client: httpx.Client) -> None:
        """Makes all calls of the client end in time, also through a proxy."""
        for transport in (client._transport, *client._mounts.values()):
            if isinstance(transport, httpx.HTTPTransport):
                transport._pool._network_backend = _Backend(self)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, deadline: Deadline) -> None:
        self._deadline, self._inner = deadline, httpcore.SyncBackend()

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *further: Any, **named: Any) -> _Stream:
        opened = self._inner.connect_tcp(host, port, self._deadline.left(timeout), *further, **named)
        return _Stream(opened, self._deadline)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Stream:
        return _Stream(
            self._inner.start_tls(ssl_context, server_hostname, self._deadline.left(timeout)), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
