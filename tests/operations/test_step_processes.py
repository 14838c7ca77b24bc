import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from operations.step_processes import StepProcesses, stop
from tests.test_rooms import loaded_by

PROGRAM = """
import os, subprocess, sys, time

def main(arguments):
    {ending}

if __name__ == "__main__":
    print("not forked")
    main(sys.argv[1:])
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="steps are forked on Linux only")


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepProcesses]:
    monkeypatch.chdir(tmp_path)  # `python -m` looks there first
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "components" / "evaluate").mkdir(parents=True)
    for name in ("__init__.py", "evaluate/__init__.py", "evaluate/step.py"):
        (tmp_path / "components" / name).touch()
    started = StepProcesses()
    yield started
    started.close()


def outcome(processes: StepProcesses, ending: str, *options: str, **environment: str) -> tuple[int, str]:
    """Exit status of a step that ends so, and what it printed."""
    Path("components/__main__.py").write_text(PROGRAM.format(ending=ending))
    process, printed = processes.start(["python", "-m", "components", "evaluate", *options], environment)
    with printed:
        text = printed.read()
    return process.wait(), text


def test_a_fork_has_its_arguments_and_its_environment(processes: StepProcesses) -> None:
    ending = "print(arguments, os.environ.get('SPOKEN'), os.getpid() == os.getsid(0)); print('loud', file=sys.stderr)"
    assert outcome(processes, ending, "--k=10", SPOKEN="ä") == (0, "['evaluate', '--k=10'] ä True\nloud\n")
    assert outcome(processes, ending, "x" * 500_000)[1].endswith("x'] None True\nloud\n"), (
        "nothing is left of the first"
    )


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no images')", 1, "no images\n"),
        ("raise ValueError('no images')", 1, "ValueError: no images\n"),
        ("os.kill(os.getpid(), 9)", -9, ""),
        ("import atexit; atexit.register(print, 'tidied')", 0, "tidied\n"),
    ],
)
def test_the_exit_status_and_the_last_words_are_those_of_a_process(
    processes: StepProcesses, ending: str, status: int, said: str
) -> None:
    ended, text = outcome(processes, ending)
    assert ended == status
    assert text.endswith(said)
    assert "not forked" not in text
    assert outcome(processes, "print('next')") == (0, "next\n"), "the server goes on"


def test_a_step_that_is_stopped_takes_its_children_along(processes: StepProcesses) -> None:
    ending = "child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    Path("components/__main__.py").write_text(PROGRAM.format(ending=ending))
    process, printed = processes.start(["python", "-m", "components", "evaluate"], {})
    with printed:
        child = int(printed.readline())
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        stop(process)
        assert process.poll() == -signal.SIGTERM
        assert printed.read() == ""
    assert gone(child)


def gone(pid: int) -> bool:
    """Whether a process has ended, or ends soon."""
    for _ in range(200):
        try:
            if ") Z" in Path(f"/proc/{pid}/stat").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_what_is_skipped_or_cannot_be_loaded_is_a_process_of_its_own(processes: StepProcesses) -> None:
    assert outcome(processes, "print('done')", "--plan=skip: unchanged") == (0, "not forked\ndone\n")
    Path("components/evaluate/step.py").write_text("import nothing_of_that_name")
    assert outcome(processes, "print('done')") == (0, "not forked\ndone\n")


def test_the_server_ends_with_the_run(processes: StepProcesses) -> None:
    _, text = outcome(processes, "print(os.getppid())")
    processes.close()
    assert gone(int(text))
    with pytest.raises(OSError, match=r"closed|descriptor"):
        processes._server.start(["evaluate"], {}, 1)  # type: ignore[union-attr]


def test_a_server_whose_runner_is_killed_ends_too(tmp_path: Path) -> None:
    program = (
        "import os, signal; from operations.step_server import StepServer\n"
        "server = StepServer([], dict(os.environ)); print(server._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert gone(int(done.stdout))


def test_what_is_loaded_is_all_that_a_training_loads_and_no_device_is_touched() -> None:
    loaded = loaded_by("from operations.step_server import FORKED, load; load(FORKED); import torch, sys\n"
                       "assert not torch.cuda.is_initialized(); assert 'torch._dynamo' in sys.modules")  # fmt: skip
    assert {"torch", "torchvision", "sklearn", "matplotlib", "pandas"} <= loaded
    assert "kfp" not in loaded
