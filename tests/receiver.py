"""A receiver of webhooks on this machine's loopback: keeps what it gets and answers as it is told to."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "T0KEN-that-nobody-may-see"


@dataclass
class Receiver:
    """One of them.

    Attributes:
        address: to post to; its path holds TOKEN.
        answers: status of the next answers, in order; 200 when there are no more.
        silent: whether it takes a message and does not answer until it is stopped.
        drips: whether it answers a byte at a time, without an end.
        messages: bodies that it has got, answered well or not.
        headers: of each.
    """

    address: str = ""
    answers: list[int] = field(default_factory=list)
    silent: bool = False
    drips: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that listens until the body ends."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.headers.append(dict(self.headers))
            receiver.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if receiver.silent:
                receiver.stopped.wait(60)
                return
            if receiver.drips:
                with contextlib.suppress(OSError):
                    while not receiver.stopped.wait(0.05):
                        self.wfile.write(b"H")
                return
            status = receiver.answers.pop(0) if receiver.answers else 200
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{receiver.address}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.address = f"http://127.0.0.1:{server.server_port}/services/{TOKEN}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
