"""Progress of long work: a bar that moves in a terminal, one line an interval in a log."""

import sys
import time
from typing import TextIO

MARK = "… "  # begins a line that the next one replaces, for whoever shows a log live


class Progress:
    """Counts work of known or unknown length and says how far it is.

        with Progress("decode", total=1000, unit="images") as progress:
            for image in images:
                progress.advance(1)

    A line carries the name, done of total, units a second, time left, and whatever numbers `advance` was last given.
    """

    def __init__(
        self, name: str, total: int | None, unit: str, stream: TextIO | None = None, seconds_between_lines: float = 2.0
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self._before = 0
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._interval = 0.1 if self._live else seconds_between_lines
        self._numbers: dict[str, float] = {}
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._show(last=True)

    def advance(self, amount: int = 1, **numbers: float) -> None:
        """Count `amount` more units; shows a line when the interval is over. `numbers` appear in it, e.g. loss=0.31."""
        self.done += amount
        self._numbers |= numbers
        if time.monotonic() - self._shown >= self._interval:
            self._show()

    def begin_at(self, done: int) -> None:
        """So much was done before, by another process: it counts, but not for the units a second."""
        self.done = self._before = done

    @property
    def per_second(self) -> float:
        """Units a second since the beginning."""
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def line(self) -> str:
        """The progress as one line of text, without mark or line end."""
        done = f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"
        parts = [f"{self.name}: {done} {self.unit}", *(f"{name} {value:.4g}" for name, value in self._numbers.items())]
        parts.append(f"{self.per_second:,.0f} {self.unit}/s")
        if self.total is not None and self.done < self.total:
            seconds = round((self.total - self.done) / max(self.per_second, 1e-9))
            parts.append(f"{seconds // 60}:{seconds % 60:02d} left")
        return ", ".join(parts)

    def _show(self, last: bool = False) -> None:
        self._shown = time.monotonic()
        if self._live:
            self._stream.write(f"\r\033[K{self.line()}" + ("\n" if last else ""))
        else:
            self._stream.write(("" if last else MARK) + self.line() + "\n")
        self._stream.flush()
