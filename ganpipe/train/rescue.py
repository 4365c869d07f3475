"""Rescues: what went wrong in a training, what was done about it, and how the training continues."""

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import pandas as pd

from ganpipe.common.files import whole

Action = Literal["warn", "stop", "rescue", "rollback"]

TABLE = "events.csv"
ATTEMPTS = 3  # rescues and roll-backs of one training before it stops
DIVERGED = "diverged"
# Actions that start a new attempt, with half the learning rates and other random numbers.
RETURNS = ("rescue", "rollback")


@dataclass(frozen=True)
class Event:
    """A row of events.csv: what was noticed after a step, and what was done about it."""

    step: int
    attempt: int  # 0 for the plain training
    what: str  # "diverged" or the kind of an alarm
    action: Action
    back_to: int  # rescue, rollback: the step to resume from; stop: the last step; warn: `step`
    text: str  # the numbers

    def __str__(self) -> str:
        if self.action in RETURNS:
            consequence = f"resuming from step {self.back_to} with half the learning rates and another seed"
        elif self.action == "stop":
            consequence = f"the training ends with step {self.back_to}, whose state is its result"
        else:
            consequence = "continuing (train.on_collapse: warn)"
        return f"{self.what} at step {self.step}: {self.text}; {consequence}"


@dataclass(eq=False)
class Trouble(Exception):
    """The training cannot continue as it is; `healthy` is the last step whose state is sound."""

    step: int
    what: str
    healthy: int
    text: str


@dataclass(frozen=True)
class Course:
    """How a training continues after its events so far."""

    events: tuple[Event, ...]
    steps: int  # the last one to make
    stopped: Event | None  # what ends it early

    @property
    def attempt(self) -> int:
        """Number of the attempt: how many rescues and roll-backs there were."""
        return sum(event.action in RETURNS for event in self.events)

    @property
    def ended(self) -> str:
        """How it ends: "finished", "diverged" or "collapsed"."""
        if self.stopped is None:
            return "finished"
        return DIVERGED if self.stopped.what == DIVERGED else "collapsed"

    def until(self, step: int) -> list[Event]:
        """Return all events but this attempt's warnings after `step`, which will be raised again."""
        return [e for e in self.events if e.action != "warn" or e.attempt < self.attempt or e.step <= step]


def read_course(folder: Path, steps: int) -> Course:
    """Return how a training of `steps` steps continues after the events in its events.csv, if any."""
    path = folder / TABLE
    table = pd.read_csv(path, na_filter=False) if path.exists() else pd.DataFrame()
    events = [Event(*row) for row in table.itertuples(index=False, name=None)]
    stops = [event for event in events if event.action == "stop"]
    last = min([steps, *(event.back_to for event in stops)])
    return Course(tuple(events), last, stops[-1] if stops else None)


def write_events(folder: Path, events: Iterable[Event]) -> None:
    """Write events.csv, whole or not at all; without events it has only its header."""
    rows = sorted(events, key=lambda event: (event.attempt, event.step))
    table = pd.DataFrame(map(asdict, rows), columns=[field.name for field in fields(Event)])
    with whole(folder / TABLE) as temporary:
        table.to_csv(temporary, index=False)


def attempt_folder(folder: Path, attempt: int) -> Path:
    """Return the folder of an attempt's checkpoints, from which no other attempt resumes."""
    return folder / "attempts" / str(attempt)


def healthy_folder(folder: Path, attempt: int) -> Path:
    """Return the folder of the attempt's checkpoints that the next attempt may start from."""
    return attempt_folder(folder, attempt) / "healthy"


def respond(folder: Path, steps: int, trouble: Trouble, action: Action, margin: int) -> Event:
    """Record how the training responds to a trouble; `read_course` then says how it continues.

    A rescue or roll-back returns to the newest healthy checkpoint at least `margin` steps before the trouble,
    which may have begun unnoticed; if there is none, to where this attempt began, else to step 0.
    After ATTEMPTS rescues and roll-backs the action is "stop".
    """
    course, back_to = read_course(folder, steps), trouble.healthy
    if action in RETURNS and course.attempt < ATTEMPTS:
        begun = max((event.back_to for event in course.events if event.action in RETURNS), default=0)
        saved = sorted(healthy_folder(folder, course.attempt).glob("*.checkpoint"))
        sound = [path for path in saved if int(path.stem) <= max(trouble.step - margin, begun)]
        back_to = int(sound[-1].stem) if sound else 0
        target = healthy_folder(folder, course.attempt + 1)
        shutil.rmtree(target, ignore_errors=True)
        if sound:
            with whole(target / sound[-1].name) as temporary:
                shutil.copyfile(sound[-1], temporary)
    else:
        action = "stop"
    event = Event(trouble.step, course.attempt, trouble.what, action, back_to, trouble.text)
    write_events(folder, (*course.events, event))
    return event
