"""Who of a run's processes is alive: their connections, and what is said when one dies. Nothing here is of jax."""

from __future__ import annotations

import contextlib
import hmac
import os
import selectors
import socket
import sys
import threading
import time

from rl_likelihood.shapes import UserError

LOST = 1  # exit code of a process that has lost another
REFUSED = 2  # of one that refused its input: another start is of no use
ADVICE = "hosts must be able to reach each other on any port: open the firewall between the workers"
TOKEN = 16  # bytes
PARTING = 2.0  # seconds that process 0 waits for the others to end before it does
MEETING = 60.0  # seconds that the processes have to connect; until then one may wait for a third, and be silent


class Unreachable(UserError):
    """The processes did not find each other: no fault of the settings, and another start may succeed."""


def processes(numbers: list[int]) -> str:
    """Processes in words."""
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def admit(
    server: socket.socket, token: bytes, count: int, host: str, seconds: float = MEETING
) -> dict[int, socket.socket]:
    """The connections of processes 1 to `count` - 1, by number, each of which begins with the token and the number (4
    bytes); a stranger's is closed. UserError if one does not come within `seconds`."""
    peers: dict[int, socket.socket] = {}
    end = time.monotonic() + seconds
    while missing := [i for i in range(1, count) if i not in peers]:
        server.settimeout(max(0.01, end - time.monotonic()))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            where = f"process 0 at {host}:{server.getsockname()[1]}"
            raise Unreachable(f"{processes(missing)} did not reach {where} within {seconds:g} s; {ADVICE}") from None
        got = b""
        connection.settimeout(min(5.0, seconds))  # who says nothing does not keep the others out
        with contextlib.suppress(OSError):
            while len(got) < TOKEN + 4 and (part := connection.recv(TOKEN + 4 - len(got))):
                got += part
        number = int.from_bytes(got[TOKEN:], "big")
        if hmac.compare_digest(got[:TOKEN], token) and number in missing:
            peers[number] = connection
        else:
            connection.close()
    return peers


def reach(host: str, port: int, token: bytes, number: int, seconds: float = MEETING) -> socket.socket:
    """Process `number`'s connection with process 0, which listens there; UserError if it cannot be made."""
    try:
        connection = socket.create_connection((host, port), timeout=seconds)
        connection.sendall(token + number.to_bytes(4, "big"))
    except OSError as e:
        why = e.strerror or str(e)
        raise Unreachable(f"process {number} cannot reach process 0 at {host}:{port} ({why}); {ADVICE}") from e
    return connection


def address_towards(host: str) -> str:
    """This machine's address on the way to another; nothing is sent."""
    family, kind, _, _, there = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as way:
        way.connect(there)
        return way.getsockname()[0]


def write_error(text: str) -> None:
    """At once and whole, as other processes write there too. A terminal that is gone keeps no process from ending."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"error: {text}\n".encode())


class Watch:
    """A connection of every process with process 0, over which each says now and then that it lives.

    jax's own service notices a dead process too, and aborts the others with a page of C++. A dead process's
    connections are closed by its kernel at once, a silent host's are quiet: either is said here first, in one line, by
    process 0, which ends the others, or by process 1 if it is process 0 that died. Lines of the connection:

        .                 alive
        quit              about to end as all do, so the closing of the connection is no death
        failed CODE WHY   to process 0: about to end by an error of its own
        end CODE          from process 0, which has said why
    """

    def __init__(self, number: int, peers: dict[int, socket.socket], heartbeat: float) -> None:
        """Process `number`'s, with its connections by the number of the other."""
        self.number, self.peers, self.heartbeat = number, peers, heartbeat
        self.over = False
        self.turn = threading.Lock()  # of the one who says why this process ends: the watch, or who calls `quiet`

    def begin(self) -> None:
        """Watch from now to the end of the process."""
        self._send(".")  # who has been heard once may not be silent any more
        self.thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.thread.start()

    def await_first(self) -> None:
        """Returns when process 0 is about to end as all do: what it has to do at the end may take a while."""
        if self.number:
            self.thread.join()  # it has one to watch, and ends all if that one dies

    def quiet(self) -> None:
        """Say nothing more: this process is about to end, and says why itself."""
        with self.turn:
            self.over = True

    def leave(self) -> None:
        """No more: this process is about to end as it should."""
        self.quiet()
        self._send("quit")

    def fail(self, code: int, why: str) -> None:
        """This process is about to end by an error of its own, with `code`: the others end with it too."""
        self.quiet()
        if self.number:
            self._send(f"failed {code} {why}")
        else:
            self._end_others(code)

    def _send(self, line: str) -> None:
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(line.encode() + b"\n")

    def _end_others(self, code: int) -> None:
        """From process 0: what jax has of them goes with it, so they are to be gone before."""
        self._send(f"end {code}")
        until = time.monotonic() + PARTING
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                while (left := until - time.monotonic()) > 0:
                    peer.settimeout(left)
                    if not peer.recv(4096):
                        break

    def _watch(self) -> None:
        heard = dict.fromkeys(self.peers, time.monotonic() + MEETING)
        waiting = dict.fromkeys(self.peers, b"")  # the beginning of a line
        said = 0.0
        with selectors.DefaultSelector() as ready:
            for number, peer in self.peers.items():
                peer.settimeout(self.heartbeat)
                ready.register(peer, selectors.EVENT_READ, number)
            while heard and not self.over:
                for key, _ in ready.select(min(1.0, self.heartbeat / 4)):
                    number = key.data
                    try:
                        got = key.fileobj.recv(4096)
                    except OSError:
                        got = b""
                    *lines, waiting[number] = (waiting[number] + got).split(b"\n")
                    for line in lines:
                        self._heed(number, line.decode(errors="replace"))
                    if b"quit" in lines:
                        ready.unregister(key.fileobj)
                        heard.pop(number)
                    elif got:
                        heard[number] = time.monotonic()
                    else:
                        self._lost(number, "is gone")
                now = time.monotonic()
                for number, when in heard.items():
                    if now - when > self.heartbeat:
                        self._lost(number, f"has not been heard of for {self.heartbeat:g} s (pod.heartbeat)")
                if now - said > self.heartbeat / 4:
                    said = now
                    for number in heard:
                        try:
                            self.peers[number].sendall(b".\n")
                        except OSError:
                            self._lost(number, "is gone")

    def _heed(self, number: int, line: str) -> None:
        word, _, rest = line.partition(" ")
        code, _, why = rest.partition(" ")
        if word == "end" and not self.over:
            os._exit(int(code))
        if word == "failed" and int(code) == REFUSED:
            self._end(f"process {number} refuses: {why}", REFUSED)
        elif word == "failed":
            self._lost(number, f"has failed ({why})", int(code))

    def _lost(self, number: int, how: str, code: int = LOST) -> None:
        self._end(f"process {number} {how}; all end; start all again to resume from the last checkpoint", code)

    def _end(self, why: str, code: int) -> None:
        with self.turn:
            if self.over:
                return
            if self.number <= 1:
                write_error(why)
            if self.number == 0:
                self._end_others(code)
            os._exit(code)  # nothing that waits for the lost one may be waited for
