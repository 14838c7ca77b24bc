"""A champion's life on CIFAR-100, by the commands that an engineer gives: what is promoted, skipped, refused, undone.

    python -m benchmarks.retraining --location FOLDER [--few 50] [--many 150] [-p name=value ...]

FOLDER holds the official `cifar-100-python`. In a home of its own (RANKONE_HOME, without any run) it tells this story,
each line a `rankone` command:

1. a run on --few images a class: promoted, the first champion;
2. the same again: skipped as unchanged;
3. a run on --many images a class: better, promoted;
4. a run made worse on purpose, of one epoch at a thousandth of the rate: rejected, and by which rule;
5. a rollback: the first champion is back;
6. two runs that promote at the same moment: one champion, and one conflict that says what to do;
7. the run that lost, again: judged against the champion of now;
8. the history.

Ends with status 1 where a line ends otherwise than it should; what happened is printed in both cases.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.home import home

MODEL = "cifar100"
SMALL = (  # the least work that still separates the models
    "max_images_per_class={few}", "pretrain_epochs=1", "adjust_epochs=1", "metric_epochs=6", "softmax_epochs=2",
    "minimum_recall_at_1=0.1", "skip_unchanged=true", f"registered_model={MODEL}",
)  # fmt: skip
WORSE = (
    "metric_epochs=1",
    "softmax_epochs=1",
    "adjust_epochs=0",
    "learning_rate=0.0001",
    "softmax_learning_rate=0.0001",
)
SLOW = ("softmax_epochs=3", "refine=0.4")  # of two at once; each makes another model, whatever the softmax layer did
QUICK = ("softmax_epochs=1", "refine=0.6")
POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status.
        seconds: wall time.
        decision: metadata of the run's decision; empty where there is none.
        said: its output.
    """

    status: int
    seconds: float
    decision: dict[str, Any]
    said: str

    @property
    def outcome(self) -> str:
        """The decision in a few words."""
        if not self.decision:
            return f"exit status {self.status}"
        rule = self.decision.get("rule", "")
        return str(self.decision["outcome"]) + (f" ({rule})" if rule else "")


class Story:
    """The commands, what each should come to, and whether it did."""

    def __init__(self, base: Sequence[str]) -> None:
        self.base = base
        self.failures: list[str] = []

    def run(self, *knobs: str) -> Ended:
        """One run of the pipeline, to its end."""
        return finish(self.start(*knobs))

    def start(self, *knobs: str) -> "Command":
        """One run of the pipeline, at work."""
        values = [f"--param={knob}" for knob in latest_of([*self.base, *knobs])]
        return Command(["run", "--recipe", "cifar100", *values])

    def tell(self, what: str, ended: Ended, held: bool) -> None:
        """Print a line of the story, and remember where it went wrong."""
        print(f"{'ok   ' if held else 'WRONG'} {what:<52} {ended.outcome:<28} {ended.seconds:7.1f} s", flush=True)
        if reason := ended.decision.get("reason"):
            print(f"      {reason}", flush=True)
        if not held:
            self.failures.append(what)
            print(ended.said[-4000:], flush=True)


class Command:
    """A `rankone` command at work."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.before = {path.parent for path in results()}
        self.started = time.monotonic()
        command = [sys.executable, "-m", "operations.command_line", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(command: Command) -> Ended:
    """Wait for a command; the decision is that of the folder that it made."""
    said, _ = command.process.communicate()
    seconds = time.monotonic() - command.started
    made = [path for path in results() if path.parent not in command.before and f"Run {path.parent.name}:" in said]
    decision: dict[str, Any] = {}
    if made:
        steps = json.loads(made[0].read_text())["steps"]
        decision = steps.get("promote", {}).get("artifacts", {}).get("decision", {}).get("metadata", {})
    return Ended(command.process.returncode, seconds, decision, said)


def results() -> list[Path]:
    """What the runs of this home recorded."""
    return list((home() / "runs").glob("*/result.json"))


def latest_of(knobs: Sequence[str]) -> list[str]:
    """Of knobs that are given several times, the last."""
    return list({knob.partition("=")[0]: knob for knob in knobs}.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--location", required=True)
    parser.add_argument("--few", type=int, default=50, help="images a class, of training and of test, of run 1")
    parser.add_argument("--many", type=int, default=150)
    parser.add_argument("-p", action="append", default=[])
    arguments = parser.parse_args()
    if results():
        parser.error(
            f"{home()} holds runs; name an empty place with RANKONE_HOME: the story begins without a champion."
        )

    story = Story([f"location={arguments.location}", *(k.format(few=arguments.few) for k in SMALL), *arguments.p])
    more = f"max_images_per_class={arguments.many}"

    first = story.run()
    story.tell("a first run", first, first.decision.get("outcome") == "promoted")
    again = story.run()
    unchanged = (again.decision.get("outcome"), again.decision.get("rule")) == ("skipped", "unchanged")
    story.tell("the same again", again, unchanged and again.seconds < first.seconds / 2)
    better = story.run(more)
    story.tell("a run on more images", better, better.decision.get("outcome") == "promoted")
    worse = story.run(more, *WORSE)
    refused = (worse.decision.get("outcome"), worse.decision.get("rule")) == ("rejected", "not_better")
    story.tell("a run made worse on purpose", worse, refused)
    undone = finish(Command(["rollback", "--reason", "It takes beavers for otters", "--json"]))
    back = champion() == first.decision.get("version")
    story.tell("a rollback", undone, undone.status == 0 and back)
    at_once(story, more)
    print(finish(Command(["history"])).said)
    print(finish(Command(["models"])).said)
    return 1 if story.failures else 0


def at_once(story: Story, more: str) -> None:
    """Two runs, both judged against one champion, then both promoting: one is held between the two by SIGSTOP."""
    before = champion()
    registered = versions()
    slow = story.start(more, *SLOW)
    held = wait_for(lambda: promoting(slow, registered))
    os.kill(held, signal.SIGSTOP)
    quick = story.run(more, *QUICK)
    os.kill(held, signal.SIGCONT)
    lost = finish(slow)
    story.tell("of two at once, the one that is first", quick, quick.decision.get("outcome") == "promoted")
    conflict = lost.status != 0 and "Nothing was moved" in lost.said and f"version {before}" in lost.said
    story.tell("of two at once, the other", lost, conflict and champion() == quick.decision.get("version"))
    for line in lost.said.splitlines():
        if "compared with" in line or "Nothing was moved" in line:
            print(f"      {line.strip()}")
    judged = story.run(more, *SLOW)
    story.tell("the other, judged again", judged, judged.status == 0 and bool(judged.decision))


def promoting(command: Command, before: set[int]) -> int | None:
    """The process of a run's promote once it has judged and registered, and before it moves the alias."""
    if command.process.poll() is not None:
        raise SystemExit(f"The run ended before it promoted:\n{command.process.communicate()[0][-4000:]}")
    step = next((pid for pid in children(command.process.pid) if "-m components promote " in command_of(pid)), None)
    return step if step and versions() - before else None


def children(pid: int) -> list[int]:
    """Processes that a process has started and that live, on Linux."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def command_of(pid: int) -> str:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def versions() -> set[int]:
    """The versions in the registry, read beside MLflow: its own client takes longer than the moment waited for."""
    import sqlite3

    with sqlite3.connect(f"file:{home() / 'mlflow.db'}?mode=ro", uri=True) as store:
        return {row[0] for row in store.execute("select version from model_versions where name = ?", (MODEL,))}


def champion() -> int | None:
    """The version that is champion, by the command that lists them."""
    listed = json.loads(finish(Command(["models", "--json"])).said)["versions"]
    return next((row["version"] for row in listed if "champion" in row["aliases"]), None)


def wait_for(found: Callable[[], int | None]) -> int:
    """Ask until there is an answer."""
    while not (answer := found()):
        time.sleep(POLL_SECONDS)
    return answer


if __name__ == "__main__":
    sys.exit(main())
