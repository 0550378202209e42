"""Servers on this machine for tests of what speaks HTTP."""

import contextlib
import functools
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def hub(there=(), refuse=False):
    """As much of the Hugging Face Hub as takes an upload; gives its address and [(path, token, body)]. `there`: files
    in the repository before."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, self.headers.get("Authorization"), body))
            answer = {"url": f"{address}/me/model", "commitUrl": f"{address}/me/model/commit/1", "commitOid": "1"}
            if "/preupload/" in self.path:
                answer = {"files": [f | {"uploadMode": "regular", "shouldIgnore": False} for f in files(body)]}
            self.answer(403 if refuse else 200, answer)

        def do_GET(self):
            tree = [{"type": "file", "path": path, "size": 1, "oid": "1"} for path in there]
            self.answer(*((200, tree) if "/tree/" in self.path else (404, {})))

        def answer(self, status, value):
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    def files(body):
        return [{"path": f["path"]} for f in json.loads(body)["files"]]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address, requests
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def serving(behave, get=lambda handler: handler.reply(200, {})):
    """A server whose `behave(handler, number, body)` answers request `number`; gives its address and the requests."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((time.monotonic(), self.path, self.headers.get("Authorization"), body))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                behave(self, len(requests), body)

        def do_GET(self):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                get(self)

        def reply(self, status, content, headers=()):
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def slow_server(folder: Path, seen: Callable[[], bool]) -> Iterator[str]:
    """The address of a server of a folder's files. It sends a third of each large file, and the rest after `seen`."""

    class Slow(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def copyfile(self, source, outputfile):
            data = source.read()
            outputfile.write(data[: len(data) // 3])
            end = time.monotonic() + 60
            while len(data) > 1_000_000 and not seen() and time.monotonic() < end:
                time.sleep(0.01)
            outputfile.write(data[len(data) // 3 :])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Slow, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
