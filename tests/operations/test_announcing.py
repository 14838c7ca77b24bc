"""What a receiver hears of a whole run on this machine: from the exit handler, and where that cannot speak."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.digit_folder import write_digits
from tests.receiver import TOKEN, Receiver, receiving


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all runs: the images are prepared once."""
    folder = tmp_path_factory.mktemp("home")
    write_digits(folder / "images", 10)
    return folder


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def command(home: Path, *assignments: str) -> list[str]:
    given = ("source=folder", f"location={home / 'images'}", *assignments)
    return [sys.executable, "-m", "operations.command_line", "run", *(f"--param={each}" for each in given)]


def environment(home: Path, receiver: Receiver) -> dict[str, str]:
    own = {"RANKONE_HOME": str(home / "kept"), "RANKONE_WEBHOOK_URL": receiver.address, "no_proxy": "*"}
    return os.environ | own | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def test_the_exit_handler_tells_of_a_step_that_failed(home: Path, receiver: Receiver) -> None:
    (home / "no-weights.pth").write_text("pretrain fails at it, though it is there")
    done = subprocess.run(
        command(home, f"weights={home / 'no-weights.pth'}", "webhook_format=slack"),
        capture_output=True,
        text=True,
        env=environment(home, receiver),
        check=False,
        timeout=280,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "pretrain failed; what it said is in" in done.stdout
    assert "The receiver was told: Failed at pretrain." in done.stdout
    (message,) = receiver.messages
    assert message["text"].startswith("Failed at pretrain\nValueError: ")
    assert "no-weights.pth" in message["text"]
    assert TOKEN not in done.stdout + done.stderr
    kept = [path.read_bytes() for path in (home / "kept").rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in kept), "it is a secret, and in no file"


def test_ctrl_c_is_told_by_the_command_itself(home: Path, receiver: Receiver) -> None:
    process = subprocess.Popen(
        command(home, "classifier=squeezenet1_0", "pretrain_epochs=1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home, receiver),
    )
    assert process.stdout is not None
    seen = ""
    while "] pretrain" not in seen:
        line = process.stdout.readline()
        assert line, seen + (process.stderr.read() if process.stderr else "")
        seen += line
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=60)
    assert process.returncode == 130, seen + rest + error
    assert "Traceback" not in seen + rest + error
    assert "The receiver was told: Stopped at pretrain." in rest
    (message,) = receiver.messages
    assert (message["outcome"], message["run"]["state"]) == ("stopped", "CANCELLED")
    assert message["run"]["failed_step"] == "pretrain"
