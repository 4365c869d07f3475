"""Progress of long jobs: a rich bar on a terminal, plain lines elsewhere. Written to stderr."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# Seconds between two updates of a bar, and between plain lines without a terminal.
BAR_EVERY, LINE_EVERY = 0.1, 10.0


class Progress:
    """Show how much of a job is done, its rate, the time left and a note.

    The job has `total` units, of which an earlier, interrupted run has done `done`.
    """

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "images") -> None:
        self.title, self.total, self.done, self.unit, self.note = title, total, done, unit, ""
        self.start_done, self.started = done, time.monotonic()
        self.shown = self.started
        self.console = Console(stderr=True, highlight=False)
        # Without markup: a file may be named [red].zip.
        texts = (f"{{task.{field}}}" for field in ("description", "fields[rate]", "fields[note]"))
        name, rate, remark = (TextColumn(text, markup=False) for text in texts)
        amount = (name, BarColumn(), TaskProgressColumn(), MofNCompleteColumn())
        pace = (rate, TimeRemainingColumn(), remark)
        self.bar = Bar(*amount, *pace, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(title, total=total, completed=done, rate="", note="")

    @property
    def rate(self) -> float:
        """Units a second since this process started."""
        return (self.done - self.start_done) / max(time.monotonic() - self.started, 1e-9)

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more units as done, and show `note`, such as losses."""
        self.done, self.note = self.done + amount, note
        # Not for each of thousands of images per second.
        if time.monotonic() - self.shown >= (LINE_EVERY if self.bar.disable else BAR_EVERY):
            self._show()

    def say(self, text: str) -> None:
        """Print a separate line, above the bar if there is one."""
        self.console.print(text, markup=False, soft_wrap=True)

    def _show(self) -> None:
        self.shown, rate = time.monotonic(), f"{self.rate:,.0f}"
        self.bar.update(self.task, completed=self.done, rate=f"{rate} {self.unit}/s", note=self.note)
        if self.bar.disable:
            done = f"{self.done:,}/{self.total:,} {self.unit} ({self.done / max(self.total, 1):.0%})"
            left = int((self.total - self.done) / max(self.rate, 1e-9))
            minutes = f"{left // 60}:{left % 60:02d}"
            self.say(f"{self.title}: {done}  {rate}/s  {minutes} left  {self.note}".rstrip())

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._show()
        self.bar.stop()
