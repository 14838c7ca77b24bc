"""Steps that start at once: one process loads the libraries, and every step that needs them is a fork of it.

A step on its own loads PyTorch, torchvision, scikit-learn and Matplotlib in 4 to 9 seconds, which for five steps is
most of a small run. Here they are loaded once, while prepare_data works. A fork then runs the step's ordinary command
line, in a session of its own, with the environment and the output that it is given.

Linux only: the libraries of other systems may not be forked once they are loaded.
"""

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

FORKED = ("pretrain", "co_cluster", "finetune_metric", "finetune_softmax", "evaluate")  # the steps that load PyTorch
LATER = ("torch._dynamo", "torchvision.models", "pandas")  # what a training loads only when it has begun
COMMAND = ["python", "-m", "components"]  # how the command line of a step begins


class ForkedStep:
    """A running step, with what the runner uses of `subprocess.Popen`."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self._channel = channel
        self._status: int | None = None

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, or minus the number of the signal that ended it.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        if self._status is None:
            self._channel.settimeout(timeout)
            try:
                self._status = _receive(self._channel)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(COMMAND, timeout or 0) from None
        return self._status


class StepServer:
    """The process that has the libraries loaded, as long as a run lasts."""

    def __init__(self, steps: Sequence[str], environment: Mapping[str, str]) -> None:
        """Begin to load them; returns at once.

        Args:
            steps: those whose libraries are loaded.
            environment: of the server; what libraries read as they load, such as OMP_NUM_THREADS, holds for every step.
        """
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "operations.step_server", str(theirs.fileno()), *steps],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the runner, which then stops the step in an orderly way
            )

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], output: int) -> ForkedStep:
        """Start `python -m components ARGUMENTS`.

        Args:
            arguments: the step and its options.
            environment: the whole environment of the step.
            output: open file of what it prints.

        Raises:
            OSError: the server has ended.
        """
        request = json.dumps({"arguments": list(arguments), "environment": dict(environment)}).encode()
        with os.fdopen(os.memfd_create("request"), "wb") as file:  # longer than a packet may be
            file.write(request)
            file.flush()
            socket.send_fds(self._channel, [b"step"], [file.fileno(), output])
        self._channel.settimeout(None)
        pid = _receive(self._channel)
        if pid < 0:
            raise OSError("the process that starts steps has ended")
        return ForkedStep(self._channel, pid)

    def close(self) -> None:
        """End the server."""
        self._channel.close()
        self._process.terminate()
        self._process.wait()


def _receive(channel: socket.socket) -> int:
    """A number; that of a process that was killed when nobody is left to send one."""
    said = channel.recv(32)
    return int(said) if said else -signal.SIGKILL


def load(steps: Sequence[str]) -> None:
    """Load what the steps need."""
    for step in steps:
        importlib.import_module(f"components.{step}.step")
        del sys.modules[f"components.{step}.step"]  # runs as the main program later
    if set(steps) - {"co_cluster", "evaluate"}:
        for name in LATER:
            importlib.import_module(name)


def serve(channel: socket.socket) -> list[str] | None:
    """Fork for every request; returns its arguments in a fork, None at the end."""
    while True:
        asked, files, *_ = socket.recv_fds(channel, 8, 2)
        if not asked:
            return None
        request, output = files
        child = os.fork()
        if child == 0:
            return _become(channel, request, output)
        os.close(request)
        os.close(output)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        channel.send(str(status).encode())


def _become(channel: socket.socket, request: int, output: int) -> list[str]:
    """Be a process as the request wants it; returns the arguments of the step."""
    os.setsid()
    channel.send(str(os.getpid()).encode())  # from here on it can be stopped with all its children
    channel.close()
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    with os.fdopen(request, "rb") as file:
        file.seek(0)
        asked = json.load(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    return list(asked["arguments"])


def run(arguments: list[str]) -> NoReturn:
    """Run a step as the main program and end the process, without taking its libraries apart: that takes a second."""
    import components.__main__ as program

    sys.argv[0], code = program.__file__, 1
    try:
        program.main(arguments)
        code = 0
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            code = ended.code or 0
        else:
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    load(sys.argv[2:])
    if (asked := serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        run(asked)
