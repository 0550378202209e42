"""Servers on this machine for tests of what speaks HTTP."""

import contextlib
import functools
import http.server
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rl_likelihood.data.judged_text import CORRECT, JudgeSettings
from rl_likelihood.rollouts.endpoint import Endpoint
from rl_likelihood.rollouts.http_judge import HttpJudge


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


def tokens(*pairs):
    """A choice of a chat reply with these tokens and log-probs."""
    return {"logprobs": {"content": [{"top_logprobs": [{"token": t, "logprob": x} for t, x in pairs]}]}}


def verdict(body):
    """A reply whose P(yes) is .8 where the answer has the word right in it, else .2."""
    text = body["messages"][0]["content"]
    p = 0.8 if "right" in text.split("<<<")[1] else 0.2
    choice = tokens((" Yes", math.log(p * 0.5)), ("yes", math.log(p * 0.5)), ("No", math.log(1 - p)))
    return {"choices": [choice], "usage": {"total_tokens": 50}}


@contextlib.contextmanager
def judging(url, cache=":memory:", **changes):
    """A judge behind this address."""
    judge = HttpJudge(Endpoint(JudgeSettings(url, name="m", **{"timeout": 5, **changes}), cache), CORRECT)
    try:
        yield judge
    finally:
        judge.close()


def ask(judge, *answers):
    """Its verdicts on answers to one question."""
    return judge(["What?"], [[(a,) for a in answers]])


def good(handler, number, body):
    """What `serving` needs of a judge's server."""
    handler.reply(200, verdict(body))
