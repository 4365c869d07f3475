"""Progress of long jobs: a rich bar on a terminal, plain lines elsewhere. Written to stderr."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# Seconds between two updates of a bar.
UPDATE_EVERY = 0.1


class Progress:
    """Show how much of a job is done, its rate, the time left and a note.

    Args:
        title: the job's name, such as "train".
        total: units in the whole job.
        done: units that an earlier, interrupted run has done.
        unit: the plural of a unit.
        every: seconds between plain lines without a terminal.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, unit: str = "images", every: float = 10.0
    ) -> None:
        self.title, self.total, self.done, self.unit, self.every = title, total, done, unit, every
        self.start_done, self.started = done, time.monotonic()
        self.printed = self.started
        self.console = Console(stderr=True, highlight=False)
        self.bar: Bar | None = None
        if self.console.is_terminal:
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self.task = self.bar.add_task(title, total=total, completed=done, rate="", note="")

    @property
    def rate(self) -> float:
        """Units a second since this process started."""
        return (self.done - self.start_done) / max(time.monotonic() - self.started, 1e-9)

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more units as done, and show `note`, such as losses."""
        self.done += amount
        # Not for each of thousands of images per second.
        due = time.monotonic() - self.printed >= (self.every if self.bar is None else UPDATE_EVERY)
        if due or (self.bar is not None and self.done == self.total):
            self._show(note)

    def say(self, text: str) -> None:
        """Print a separate line, above the bar if there is one."""
        self.console.print(text, markup=False, soft_wrap=True)

    def _show(self, note: str = "") -> None:
        self.printed = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=f"{self.rate:,.0f} {self.unit}/s", note=note)
            return
        left = (self.total - self.done) / max(self.rate, 1e-9)
        parts = [
            f"{self.title}: {self.done:,}/{self.total:,} {self.unit} ({self.done / max(self.total, 1):.0%})",
            f"{self.rate:,.0f}/s",
            f"{int(left // 60)}:{int(left % 60):02d} left",
            note,
        ]
        self.console.print("  ".join(part for part in parts if part), soft_wrap=True)

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif kind is None:
            self._show()
