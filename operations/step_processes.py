"""The processes of a run's steps: how each is started, and how it is stopped."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol, TextIO

from components.launch import PLAN, SKIP
from operations.step_server import COMMAND, FORKED, StepServer

SECONDS_TO_STOP = 10.0
SPIN_COUNT = "10000"  # of idle threads; libgomp's own 300,000 harms neighbours (benchmarks/spinning.py)


class Process(Protocol):
    """What is used of `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None:
        """The exit status; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, at the end."""


class StepProcesses:
    """Starts the steps of a run: what loads PyTorch as a fork of one process that has it, the others anew."""

    def __init__(self) -> None:
        self._server: StepServer | None = None

    def start(self, command: list[str], environment: dict[str, str]) -> tuple[Process, TextIO]:
        """Start a command line.

        Args:
            command: its first word may be `python`, which is this one.
            environment: added to what every step finds.

        Returns:
            The process, which leads a group of its own, and what it prints.
        """
        environment = {"GOMP_SPINCOUNT": SPIN_COUNT, **os.environ, "PYTHONUNBUFFERED": "1", **environment}
        reader, writer = os.pipe()
        printed = os.fdopen(reader, encoding="utf-8", errors="replace")
        with os.fdopen(writer, "wb") as output:
            if server := self._server_for(command, environment):
                with contextlib.suppress(OSError):  # it could not load; the step on its own says why
                    return server.start(command[len(COMMAND) :], environment, output.fileno()), printed
            process = subprocess.Popen(
                [sys.executable, *command[1:]] if command[0] == "python" else command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the runner alone, which stops the step in an orderly way
            )
        return process, printed

    def close(self) -> None:
        """End what was loaded."""
        if self._server:
            self._server.close()

    def _server_for(self, command: Sequence[str], environment: dict[str, str]) -> StepServer | None:
        """The server that has loaded what a step needs; it begins to load when the first step begins to work."""
        options = command[len(COMMAND) + 1 :]
        if sys.platform != "linux" or list(command[: len(COMMAND)]) != COMMAND:
            return None
        if any(option.startswith(f"--{PLAN}={SKIP}") for option in options):
            return None
        step = command[len(COMMAND)]
        if self._server is None and step in ("prepare_data", *FORKED):
            self._server = StepServer(FORKED[FORKED.index(step) :] if step in FORKED else FORKED, environment)
        return self._server if step in FORKED else None


def stop(process: Process) -> None:
    """End a process and its children, gently first."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_STOP)
            return
