"""What a person sees of a run: which step of how many, what it is doing, and a table at the end."""

import sys
import time
from pathlib import Path
from typing import Any

from kfp import dsl
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from operations.local_runner import StepResult
from retrieval.progress import MARK

STAGES = ("pretrain", "co_cluster", "finetune_metric", "finetune_softmax")
INDENT = "      "
LOG_WIDTH = 140  # columns of a table in a log


class Display:
    """Shows a run live in a terminal, line by line in a log; keeps what every step said in a file of its own."""

    def __init__(self, steps: int, logs: Path) -> None:
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = LOG_WIDTH
        self.results: dict[str, StepResult] = {}
        self.at_work = ""  # the step whose turn it is
        self._steps, self._logs = steps, logs
        self._live: Live | None = None
        self._started = 0.0

    def log_of(self, step: str) -> Path:
        """The file that holds all that a step said."""
        return self._logs / f"{step}.log"

    def step_started(self, step: str) -> None:
        """Show the step and its number."""
        self._started, self.at_work = time.monotonic(), step
        self._heading = f"[{len(self.results) + 1}/{self._steps}] {step}"
        self._running = False

    def step_said(self, step: str, line: str) -> None:
        """Show a line; a line of progress takes the place of the one before where there is a terminal."""
        if not self._running:
            self._begin()
        with self.log_of(step).open("a") as log:
            log.write(line + "\n")
        if not line.startswith(MARK):
            self.console.print(Text(INDENT + line))
        elif self._live:
            self._live.update(self._status(line.removeprefix(MARK)))
        else:
            self.console.print(Text(INDENT + line))

    def step_ended(self, result: StepResult) -> None:
        """Say how it ended and how long it took."""
        self.close()
        self.results[result.step], self.at_work = result, ""
        if result.cached:
            self.console.print(f"[bold]{self._heading}[/]  [cyan]done before[/] (from the step cache)")
        elif result.succeeded:
            self.console.print(Text(f"{INDENT}done in {_duration(result.seconds)}", style="green"))
        else:
            self.console.print(Text(f"{INDENT}failed after {_duration(result.seconds)}", style="bold red"))

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()
            self._live = None

    def _begin(self) -> None:
        self._running = True
        self.console.print(Text(self._heading, style="bold"))
        if self.console.is_terminal:
            self._live = Live(self._status("starting"), console=self.console, transient=True, refresh_per_second=8)
            self._live.start()

    def _status(self, text: str) -> Spinner:
        return Spinner("dots", text=Text(f" {text}"))


def summary(console: Console, results: dict[str, StepResult], report: Path, commands: list[tuple[str, str]]) -> None:
    """Print the closing table of a run that went through.

    Args:
        console: where to.
        results: what every step returned.
        report: where the report lies.
        commands: what a person may want next: command and what it is for.
    """
    dataset = _metadata(results, "prepare_data", "dataset")
    evaluation = _metadata(results, "evaluate", "evaluation")
    decision = _metadata(results, "promote", "decision")
    table = Table(show_header=False, box=None, padding=(0, 2), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("data", _data_line(dataset))
    for stage in STAGES:
        value = evaluation.get(f"{stage}_recall_at_1")
        if value is not None:
            table.add_row(f"R@1 after {stage}", f"{value:.1%}  {'━' * round(40 * value)}")
    low, high = evaluation["recall_at_1_low"], evaluation["recall_at_1_high"]
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    table.add_row(
        "R@1 of the model", f"{evaluation['recall_at_1']:.1%}, {interval}, {int(evaluation['queries']):,} queries"
    )
    table.add_row(
        "decision", Text(f"{decision['outcome']}: {decision['reason']}", style=_colour(str(decision["outcome"])))
    )
    alias = f", alias {decision['alias']}" if decision.get("alias") else ", no alias"
    table.add_row("registered", f"{decision['registered_model']} version {int(decision['version'])}{alias}")
    table.add_row("report", str(report))
    console.print()
    console.print(table)
    console.print("\nnext")
    for command, purpose in commands:
        console.print(Text.assemble(f"  # {purpose}\n  ", (command, "cyan")))


def _metadata(results: dict[str, StepResult], step: str, artifact: str) -> dict[str, Any]:
    found: dsl.Artifact = results[step].artifacts[artifact]
    return found.metadata


def _data_line(dataset: dict[str, Any]) -> str:
    images, classes = int(dataset["images"]), int(dataset["classes"])
    parts = ", ".join(f"{int(dataset[f'{split}_images']):,} {split}" for split in ("train", "validation", "test"))
    return f"{images:,} images of {classes:,} classes ({parts}); {int(dataset['quarantined']):,} quarantined"


def _colour(outcome: str) -> str:
    return {"promoted": "bold green", "rejected": "bold yellow"}.get(outcome, "bold")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
