"""The process that holds MLflow open while a pipeline runs, so that no step has to import it.

It listens on a Unix socket for lines of JSON; one connection is one run. It ends when whoever started it has gone and
the last step has hung up. What it prints goes to `mlflow.log` in `home()`.
"""

import contextlib
import json
import os
import select
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from retrieval.home import home

SOCKET = "RANKONE_TRACKING_SOCKET"  # variable that tells the steps where it listens


class TrackingError(OSError):
    """MLflow could not be reached, or refused something."""


class Connection:
    """A channel to the process: one line of JSON a message."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rwb")

    def tell(self, action: str, **arguments: Any) -> None:
        """Send and go on; a failure is reported by the next `ask`."""
        self._send({"action": action, "arguments": arguments})

    def ask(self, action: str, **arguments: Any) -> Any:
        """Send, and wait for the answer.

        Raises:
            TrackingError: this action, or one told before, failed; or the process is gone.
            ValueError: the same, where what was sent is at fault.
        """
        self._send({"action": action, "arguments": arguments, "answer": True})
        line = self._file.readline()
        if not line:
            raise TrackingError(f"The tracking process has ended; {home() / 'mlflow.log'} says why.")
        answer = json.loads(line)
        if answer["error"]:
            raise (ValueError if answer["kind"] == "ValueError" else TrackingError)(answer["error"])
        return answer["value"]

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(message).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise TrackingError(f"The tracking process has ended; {home() / 'mlflow.log'} says why.") from error


def connect() -> Connection | None:
    """A channel to the process that RANKONE_TRACKING_SOCKET names; None where there is none."""
    address = os.environ.get(SOCKET)
    if not address:
        return None
    try:
        return Connection(address)
    except OSError:
        return None  # it has ended: MLflow is then opened in this process


def start() -> None:
    """Start the process, unless one runs, and tell this process's children of it. Returns at once."""
    if _started:
        return
    folder = Path(tempfile.mkdtemp(prefix="rankone-"))  # short, for a socket's name; only this user may enter
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "socket"))
    listener.listen()
    with listener, (home() / "mlflow.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "retrieval.tracking_process", str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *_python_path()])},
            start_new_session=True,  # Ctrl-C is for the steps; this one writes down that they were killed
        )
    _started.append((process, folder))
    os.environ[SOCKET] = str(folder / "socket")


def stop(wait: bool = True) -> None:
    """Let the process end: it finishes what it was told."""
    if not _started:
        return
    process, folder = _started.pop()
    os.environ.pop(SOCKET, None)
    assert process.stdin is not None
    process.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)
    if wait:
        process.wait()
    else:
        process.returncode = 0  # nobody waits for it any more


_started: list[tuple[subprocess.Popen[bytes], Path]] = []


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Accepts connections on a socket that is open already; closing waits for all of them."""

    daemon_threads = False

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener


class Handler(socketserver.StreamRequestHandler):
    """One connection: one run."""

    def handle(self) -> None:
        """Do what is asked, line by line; after a failure nothing more, until it is reported."""
        from retrieval import tracking

        writer, failure = tracking.RunWriter(), None
        for line in self.rfile:
            message, value = json.loads(line), None
            ends = message["action"] == "end"
            if ends and failure:
                message["arguments"]["status"] = "FAILED"
            if ends or not failure:
                try:
                    value = tracking.perform(writer, message["action"], message["arguments"])
                except Exception as error:
                    failure = failure or error
            if message.get("answer"):
                kind = "ValueError" if isinstance(failure, ValueError) else "TrackingError"
                answer = {"value": value, "error": str(failure) if failure else "", "kind": kind}
                with contextlib.suppress(OSError):  # it did not wait
                    self.wfile.write(json.dumps(answer).encode() + b"\n")
                failure = None
        writer.abandon()


def serve(listener: socket.socket) -> None:
    """Serve until standard input ends and every connection has been closed."""
    from retrieval import tracking

    with Server(listener) as server:
        accepting = threading.Thread(target=server.serve_forever, args=(0.05,))
        accepting.start()
        try:
            with contextlib.suppress(Exception):  # whoever asks will hear of it
                tracking.perform(tracking.RunWriter(), "run_id", {})
                tracking.client()
            sys.stdin.buffer.read()
        finally:
            server.shutdown()
            accepting.join()
        while select.select([listener], [], [], 0)[0]:
            server.handle_request()


def _python_path() -> list[str]:
    return [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []


if __name__ == "__main__":
    from retrieval import tracking_process  # not __main__: one module, one class of error

    tracking_process.serve(socket.socket(fileno=int(sys.argv[1])))
