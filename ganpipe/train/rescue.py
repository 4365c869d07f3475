"""What went wrong in a training and what was done about it: a table, from which its course follows.

An attempt goes on with half the learning rates and other random numbers than the one before. It keeps its
checkpoints in a folder of its own, so that those of an abandoned attempt can never be taken for its own.
"""

import csv
import dataclasses
import io
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ganpipe.common import files

Action = Literal["warn", "stop", "rescue", "rollback"]

TABLE = "events.csv"
ATTEMPTS = 3  # rescues and roll-backs of one training, before it stops
DIVERGED = "diverged"


@dataclass(frozen=True)
class Event:
    """A row of events.csv.

    Attributes:
        step: at which it was noticed.
        attempt: 0 for the plain training, then one more for each rescue or roll-back.
        what: "diverged" or the kind of an alarm.
        action: what was done.
        back_to: step that the training went on from (rescue, rollback) or ends with (stop); else `step`.
        text: the figures.
    """

    step: int
    attempt: int
    what: str
    action: Action
    back_to: int
    text: str

    def __str__(self) -> str:
        done = {
            "warn": "going on (train.on_collapse: warn)",
            "stop": f"the training ends with step {self.back_to}, and what is there is its result",
            "rescue": f"going on from step {self.back_to} with half the rates and another seed",
            "rollback": f"going on from step {self.back_to} with half the rates and another seed",
        }
        return f"{self.what} at step {self.step}: {self.text}; {done[self.action]}"


class Trouble(Exception):
    """The training cannot go on as it is.

    Args:
        step: at which it was noticed.
        what: "diverged" or the kind of an alarm.
        healthy: the last step whose state is sound.
        text: the figures.
    """

    def __init__(self, step: int, what: str, healthy: int, text: str) -> None:
        super().__init__(text)
        self.step, self.what, self.healthy, self.text = step, what, healthy, text


@dataclass(frozen=True)
class Course:
    """How a training is to go on after what happened so far.

    Attributes:
        events: all so far, in order.
        steps: the last step.
        stopped: the event that ends it before its time.
    """

    events: tuple[Event, ...]
    steps: int
    stopped: Event | None

    @property
    def attempt(self) -> int:
        """0 for the plain training, then one more for each rescue or roll-back."""
        return sum(event.action in ("rescue", "rollback") for event in self.events)

    @property
    def ended(self) -> str:
        """How it ends: "finished", "diverged" or "collapsed"."""
        if self.stopped is None:
            return "finished"
        return DIVERGED if self.stopped.what == DIVERGED else "collapsed"


def read(folder: Path) -> bytes:
    """Return the table of a training's folder, no bytes where it is not there yet."""
    return (folder / TABLE).read_bytes() if (folder / TABLE).exists() else b""


def course(table: bytes, steps: int) -> Course:
    """Work out from its table how a training of so many steps is to go on."""
    events = []
    for row in csv.DictReader(io.StringIO(table.decode(), newline="")):
        numbers = {name: int(row[name]) for name in ("step", "attempt", "back_to")}
        events.append(Event(**(row | numbers)))  # type: ignore[arg-type]
    stops = [event for event in events if event.action == "stop"]
    last = min([steps, *(event.back_to for event in stops)])
    return Course(tuple(events), last, stops[-1] if stops else None)


def write(folder: Path, events: Iterable[Event]) -> None:
    """Write the table, whole or not at all; one without rows where nothing has happened."""
    names = [field.name for field in dataclasses.fields(Event)]
    with files.whole(folder / TABLE) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(
            map(dataclasses.asdict, sorted(events, key=lambda event: (event.attempt, event.step)))
        )


def attempt_folder(folder: Path, attempt: int) -> Path:
    """Return where an attempt keeps its checkpoints."""
    return folder / "attempts" / str(attempt)


def healthy_folder(folder: Path, attempt: int) -> Path:
    """Return where an attempt keeps the checkpoints that a later attempt may start from."""
    return attempt_folder(folder, attempt) / "healthy"


def respond(folder: Path, steps: int, trouble: Trouble, action: Action, margin: int) -> Event:
    """Write down what is done about a trouble; `course` then says how the training goes on.

    A rescue or roll-back goes to the newest healthy checkpoint at least `margin` steps before the trouble, as
    that grew for some steps unnoticed; else to the one that the attempt began with, or the start.

    Args:
        folder: the training's.
        steps: of the whole training.
        trouble: what happened.
        action: what the params ask for; after ATTEMPTS attempts it is "stop".
        margin: steps.
    """
    now, back_to = course(read(folder), steps), trouble.healthy
    if action in ("rescue", "rollback") and now.attempt < ATTEMPTS:
        saved = sorted(healthy_folder(folder, now.attempt).glob("*.checkpoint"))
        begun = max(event.back_to for event in now.events if event.action == action) if now.attempt else 0
        sound = [path for path in saved if int(path.stem) <= max(trouble.step - margin, begun)]
        back_to = int(sound[-1].stem) if sound else 0
        target = healthy_folder(folder, now.attempt + 1)
        shutil.rmtree(target, ignore_errors=True)
        if sound:
            with files.whole(target / sound[-1].name) as temporary:
                shutil.copyfile(sound[-1], temporary)
    else:
        action = "stop"
    event = Event(trouble.step, now.attempt, trouble.what, action, back_to, trouble.text)
    write(folder, (*now.events, event))
    return event
