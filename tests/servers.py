"""A server on this machine for tests of what speaks HTTP."""

import contextlib
import http.server
import json
import threading
import time


@contextlib.contextmanager
def serving(behave):
    """A server whose `behave(handler, number, body)` answers request `number`; gives its address and the requests."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((time.monotonic(), self.path, self.headers.get("Authorization"), body))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                behave(self, len(requests), body)

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
