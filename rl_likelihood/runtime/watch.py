"""Notices when one of a run's processes dies, and ends the others with one line. Needs no jax."""

import contextlib
import hmac
import os
import selectors
import socket
import sys
import threading
import time

from rl_likelihood.errors import REFUSED, UserError
from rl_likelihood.runtime.run_files import fail_running

LOST = 1  # exit code of a process that has lost another one
ADVICE = "hosts must be able to reach each other on any port: open the firewall between the workers"
TOKEN = 16  # bytes
READY = b"go\n"  # what process 0 tells the others when all are connected
GOODBYE = 2.0  # seconds that process 0 waits for the others to end before it ends
MEETING = 60.0  # seconds for all processes to connect; until then a silent process counts as alive


class Unreachable(UserError):
    """The processes could not connect. The settings may be right, and a restart may succeed."""


def processes(numbers: list[int]) -> str:
    """Process numbers in words: "process 1", "processes 1, 2"."""
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


class Notice:
    """Prints what a process is waiting for: after 3 seconds, and then twice a minute."""

    def __init__(self) -> None:
        self.due = time.monotonic() + 3

    def waiting(self, what: str) -> None:
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + 30
            print(f"waiting for {what}", file=sys.stderr, flush=True)


def admit(
    server: socket.socket, token: bytes, count: int, host: str, seconds: float = MEETING
) -> dict[int, socket.socket]:
    """Accepts the connections of processes 1 to `count` - 1, and returns them by number once all are connected.

    Each connection begins with the token and the process's number (4 bytes); others are closed. Unreachable if a
    process does not connect within `seconds`.
    """
    peers: dict[int, socket.socket] = {}
    address, end, notice = f"{host}:{server.getsockname()[1]}", time.monotonic() + seconds, Notice()
    while missing := [i for i in range(1, count) if i not in peers]:
        notice.waiting(f"{processes(missing)} to reach process 0 at {address}")
        left = end - time.monotonic()
        if left <= 0:
            who = processes(missing)
            raise Unreachable(f"{who} did not reach process 0 at {address} within {seconds:g} s; {ADVICE}")
        server.settimeout(min(1.0, left))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        connection.settimeout(min(5.0, seconds))  # a silent one must not block the others
        got = _receive(connection, TOKEN + 4)
        number = int.from_bytes(got[TOKEN:], "big")
        if hmac.compare_digest(got[:TOKEN], token) and number in missing:
            peers[number] = connection
        else:
            connection.close()
    for connection in peers.values():
        with contextlib.suppress(OSError):  # the watch will notice
            connection.sendall(READY)
    return peers


def reach(host: str, port: int, token: bytes, number: int, seconds: float = MEETING) -> socket.socket:
    """Connects process `number` with process 0 at host:port, and returns once all processes are connected.

    It retries for `seconds`, then raises Unreachable.
    """
    end, notice, why = time.monotonic() + seconds, Notice(), ""
    while (left := end - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((host, port), timeout=min(5.0, left))
            connection.sendall(token + number.to_bytes(4, "big"))
            why = "it does not answer as process 0 of this run"
            if _is_ready(connection, end, notice, f"{host}:{port}, where process 0 waits for the other processes"):
                return connection
            connection.close()
        except OSError as e:
            why = e.strerror or str(e)
        notice.waiting(f"{host}:{port}, process 0 of this run ({why})")
        time.sleep(min(0.5, max(0.0, end - time.monotonic())))
    raise Unreachable(
        f"process {number} could not reach process 0 at {host}:{port} within {seconds:g} s ({why}); "
        f"check --coordinator, and that process 0 runs; {ADVICE}"
    )


def _is_ready(connection: socket.socket, end: float, notice: Notice, what: str) -> bool:
    """Waits until `end` for process 0 to send READY. False if it closes the connection or sends something else."""
    got = b""
    connection.settimeout(1.0)
    while len(got) < len(READY) and time.monotonic() < end:
        notice.waiting(what)
        with contextlib.suppress(TimeoutError):
            part = connection.recv(len(READY) - len(got))
            if not part:
                return False
            got += part
    return got == READY


def _receive(connection: socket.socket, size: int) -> bytes:
    """Receives `size` bytes, or fewer if the connection ends or times out."""
    got = b""
    with contextlib.suppress(OSError):
        while len(got) < size and (part := connection.recv(size - len(got))):
            got += part
    return got


def address_towards(host: str) -> str:
    """This machine's address in the network of `host`. Nothing is sent."""
    family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return probe.getsockname()[0]


def write_error(text: str) -> None:
    """Writes the line in one piece, because other processes write to the same stderr. Ignores a closed terminal."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"error: {text}\n".encode())


class Watch:
    """Watches the connections of every process with process 0, which carry a heartbeat in both directions.

    jax's own service also notices a dead process, but it aborts the others with a page of C++. The watch is faster and
    prints one line: the kernel closes the connections of a dead process at once, and a dead host sends no heartbeat.
    Process 0 prints the line and ends the others. If process 0 died, process 1 prints it. Messages:

        .                 the sender is alive
        quit              the sender ends normally, and its connection will close
        failed CODE WHY   to process 0: the sender ends because of an error
        end CODE          from process 0, which has printed the reason: the receiver must end
    """

    def __init__(self, number: int, peers: dict[int, socket.socket], heartbeat: float) -> None:
        """`number`: of this process. `peers`: its connections, by the number of the other process."""
        self.number, self.peers, self.heartbeat = number, peers, heartbeat
        self.over = False
        self.lock = threading.Lock()  # only one thread prints why this process ends: the watch or a caller of `quiet`

    def begin(self) -> None:
        """Starts the thread that watches until the process ends."""
        self._send(".")  # starts the heartbeat
        self.thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.thread.start()

    def await_first(self) -> None:
        """Waits until process 0 ends normally, because its last work, such as a figure, may take a while."""
        if self.number:
            self.thread.join()  # the thread ends this process if process 0 dies

    def quiet(self) -> None:
        """Silences the watch, because this process is about to end and prints the reason itself."""
        with self.lock:
            self.over = True

    def leave(self) -> None:
        """Stops watching, and tells the others that this process is about to end normally."""
        self.quiet()
        self._send("quit")

    def fail(self, code: int, why: str) -> None:
        """Ends the others too, because this process is about to end with `code` after an error."""
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
        """Ends the other processes, from process 0, and waits, because jax's coordinator ends with this process."""
        self._send(f"end {code}")
        until = time.monotonic() + GOODBYE
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                while (left := until - time.monotonic()) > 0:
                    peer.settimeout(left)
                    if not peer.recv(4096):
                        break

    def _watch(self) -> None:
        heard = dict.fromkeys(self.peers, time.monotonic() + MEETING)
        partial = dict.fromkeys(self.peers, b"")  # incomplete lines
        last_sent = 0.0
        with selectors.DefaultSelector() as ready:
            for number, peer in self.peers.items():
                peer.settimeout(self.heartbeat)
                ready.register(peer, selectors.EVENT_READ, number)
            while heard and not self.over:
                for key, _ in ready.select(min(1.0, self.heartbeat / 4)):
                    if self._hear(key.data, partial, heard):
                        ready.unregister(key.fileobj)
                now = time.monotonic()
                for number, when in heard.items():
                    if now - when > self.heartbeat:
                        self._lost(number, f"has not been heard of for {self.heartbeat:g} s (pod.heartbeat)")
                if now - last_sent > self.heartbeat / 4:
                    last_sent = now
                    for number in heard:
                        try:
                            self.peers[number].sendall(b".\n")
                        except OSError:
                            self._lost(number, "is gone")

    def _hear(self, number: int, partial: dict[int, bytes], heard: dict[int, float]) -> bool:
        """Reads the messages of a process. Returns whether it has quit."""
        try:
            data = self.peers[number].recv(4096)
        except OSError:
            data = b""
        *lines, partial[number] = (partial[number] + data).split(b"\n")
        for line in lines:
            self._obey(number, line.decode(errors="replace"))
        if b"quit" in lines:
            heard.pop(number)
            return True
        if not data:
            self._lost(number, "is gone")
        heard[number] = time.monotonic()
        return False

    def _obey(self, number: int, line: str) -> None:
        word, _, arguments = line.partition(" ")
        code, _, why = arguments.partition(" ")
        if word == "end" and not self.over:
            os._exit(int(code))
        if word == "failed" and int(code) == REFUSED:
            self._end(f"process {number} refuses: {why}", REFUSED)
        elif word == "failed":
            self._lost(number, f"has failed ({why})", int(code))

    def _lost(self, number: int, how: str, code: int = LOST) -> None:
        self._end(f"process {number} {how}; all end; start all again to resume from the last checkpoint", code)

    def _end(self, why: str, code: int) -> None:
        with self.lock:
            if self.over:
                return
            if self.number <= 1:
                write_error(why)
            if self.number == 0:
                self._end_others(code)
                fail_running(why)
            os._exit(code)  # at once: other threads may wait for the lost process
