"""What the cells of a grid report on storage that all machines see, so that no process has to remember it.

A cell has a folder `cells/<commit>/<name>` in GANPIPE_UNFINISHED, with cell.json (what to run), N.json and
N.log of each attempt N, `unfinished` (copies of its training), `job` (the engine and its number of it),
and `end`, a request to end it.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ganpipe.common import files, processes
from ganpipe.common.errors import UserError
from ganpipe.common.processes import NODE

BEAT = 10.0  # seconds between signs of life
SILENCE = 120.0  # seconds without a sign of life after which a cell counts as lost
OVER = ("finished", "failed", "ended", "lost")  # states in which nothing more will happen
ORDER, JOB, END = "cell.json", "job", "end"


@dataclass(frozen=True)
class Order:
    """What a cell is to run, and where its results go."""

    name: str  # of the DVC experiment
    grid: str  # that the cell belongs to
    commit: str  # that it starts from
    settings: list[str]  # in Hydra's syntax, for `dvc exp run -S`
    hub: str  # address of the git remote
    remote: dict[str, str]  # DVC remote: its name and url
    cache: str | None  # folder of DVC's cache; None: one for all cells of a node, in its scratch folder
    environment: dict[str, str] = field(default_factory=dict)  # set for the experiment

    @property
    def ref(self) -> str:
        """The git ref by which DVC knows the experiment."""
        return f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{self.name}"

    def write(self, folder: Path) -> None:
        """Write cell.json, readable by its owner only: the hub's address may hold a token."""
        with files.whole(folder / ORDER) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(asdict(self), indent=1))


@dataclass(frozen=True)
class State:
    """How far an attempt to run a cell has come."""

    state: str  # waiting, cloning, running, pushing, or one of OVER
    reason: str = ""  # why it failed or ended
    node: str = ""
    process: tuple[int, float] = (0, 0.0)  # number and start, seconds since 1970
    revision: str = ""  # the experiment's commit, once it exists


def folder_of(shared: Path, commit: str, name: str) -> Path:
    """Return the folder of a cell."""
    return shared / "cells" / commit[:12] / name


def read_order(folder: Path) -> Order | None:
    """Read what a cell is to run; None: it was never submitted, or by another version."""
    try:
        return Order(**json.loads((folder / ORDER).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def read_states(folder: Path) -> Iterator[State]:
    """Yield the states of a cell's attempts, the newest first."""
    for record in files.records(folder):
        with suppress(OSError, ValueError, TypeError):  # an attempt that has just begun has an empty record
            yield State(**json.loads(record.read_text()))


def current(folder: Path, job_alive: Callable[[str], bool]) -> State:
    """Return the state of a cell; "lost": it gives no sign of life, and no engine will start it again."""
    state = next(read_states(folder), State("waiting"))
    if state.state in OVER:
        return state
    silent = 0.0
    if record := next(iter(files.records(folder)), None):
        with suppress(OSError):
            silent = time.time() - record.stat().st_mtime
    dead = state.node == NODE and not processes.alive(int(state.process[0]), state.process[1])
    if not (state.state == "waiting" or dead or silent > SILENCE):
        return state
    if job_alive(job_of(folder)):
        return State("waiting", node=state.node)  # such as for Slurm, which has queued it again
    return State("lost", "what ran it is gone; the same command with --run resumes it", state.node)


def job_of(folder: Path) -> str:
    """Return the engine of a cell and its job, such as "slurm 17_0"; empty if none was submitted."""
    with suppress(OSError):
        return (folder / JOB).read_text()
    return ""


def write_job(folder: Path, job: str) -> None:
    """Write what was submitted to which engine."""
    with files.whole(folder / JOB) as temporary:
        temporary.write_text(job)


def fail(folder: Path, reason: str) -> None:
    """Record that a cell failed without a word, such as on nodes that died."""
    if next(read_states(folder), State("waiting")).state not in OVER:
        write_state(next(iter(files.records(folder)), None) or files.claim(folder), State("failed", reason))


def write_state(record: Path, state: State) -> None:
    """Write the state of an attempt into its record."""
    with files.whole(record) as temporary:
        temporary.write_text(json.dumps(asdict(state)))


def last_line(folder: Path) -> str:
    """Return the last line of a cell's log, such as a training's progress; empty if there is none."""
    logs = sorted(folder.glob("[0-9]*.log"), key=lambda path: int(path.stem))
    lines = read_tail(logs[-1]).split("\n") if logs else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def read_tail(path: Path) -> str:
    """Return the last 20 kB of a file; empty if it does not exist."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 20_000))
        return file.read().decode(errors="replace")
    return ""


class Attempt:
    """An attempt to run a cell; its number is higher than that of any attempt before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, files.claim(folder)
        self.process = os.getpid(), processes.start_of(os.getpid())
        self.log, self.revision = self.record.with_suffix(".log"), ""

    def note(self, state: str, reason: str = "") -> None:
        """Record how far this attempt has come."""
        write_state(self.record, State(state, reason, NODE, self.process, self.revision))

    def must_end(self) -> str:
        """Return why this attempt must not go on; empty if it may."""
        if newest := files.newer(self.record):
            return f"attempt {newest} has taken over from attempt {self.record.stem}"
        return "as asked" if (self.folder / END).exists() else ""

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Give a sign of life every BEAT seconds, however long a clone or a push takes."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT):
                with suppress(OSError):
                    os.utime(self.record)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def submitted(folder: Path) -> Order:
    """Return what a cell is to run; raise a UserError if nothing was submitted."""
    if order := read_order(folder):
        return order
    raise UserError(f"{folder}: holds no cell; submit it with `ganpipe grid NAME --run --on …`")
