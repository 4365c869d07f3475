"""The table of a grid's cells, read from what they report and not from memory, and their results fetched."""

import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from ganpipe.cluster import board, on_ray, on_slurm
from ganpipe.cluster.board import State
from ganpipe.cluster.options import Options
from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.git import git_or_error

POLL = 2.0  # seconds between looks at the cells
# A line of a training's progress: how much is done, and the time left.
PROGRESS = re.compile(r"(\w+: [\d,]+/[\d,]+).*?([\d:]+) left")

States = Mapping[Path, State]


def shared_folder(root: Path) -> Path:
    """Return the folder of unfinished work that all nodes see; on one machine it is the checkout's."""
    return Path(os.environ.get(files.UNFINISHED) or root / ".ganpipe" / "unfinished").expanduser().resolve()


def state_of(folder: Path) -> State:
    """Return the state of a cell; one that was never submitted is lost."""
    return board.current(folder, _job_alive) if board.read_order(folder) else State("lost")


def _job_alive(job: str) -> bool:
    if not job:
        return False
    return on_ray.alive(job) if job.startswith("ray ") else on_slurm.alive(job)


def follow(root: Path, name: str, folders: Sequence[Path], options: Options) -> None:
    """Show cells until none waits or runs, then fetch the finished ones.

    Ctrl-C ends the cells, with a checkpoint each, if `options.end`; else it only ends this table.

    Raises UserError: a line for each cell that failed.
    """
    console, known = Console(stderr=True, highlight=False, soft_wrap=True), dict[Path, str]()
    states = {folder: state_of(folder) for folder in folders}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            try:
                for folder, state in states.items():
                    if known.get(folder) != state.state and not console.is_terminal:
                        console.print(f"{folder.name}: {_text(state)}", markup=False)
                    known[folder] = state.state
                if console.is_terminal:
                    live.update(table(name, states), refresh=True)
                if all(state.state in board.OVER for state in states.values()):
                    break
                time.sleep(POLL)
            except KeyboardInterrupt:
                live.stop()
                if not options.end:
                    _leave(name, states)
                end(folders)
                console.print(
                    "Ending the cells; each writes a checkpoint, and the same command resumes them."
                )
                options = Options()  # a second Ctrl-C leaves them to it
            states = {folder: state_of(folder) for folder in folders}
    finish(root, name, states)


def _leave(name: str, states: States) -> None:
    """Exit, and tell how to see and how to end the cells that go on."""
    count = sum(state.state not in board.OVER for state in states.values())
    print(f"{count} cells go on. `ganpipe grid {name} --collect` shows them and fetches what has finished;")
    print(f"`ganpipe grid {name} --collect --end` ends them")
    raise SystemExit(130) from None


def end(folders: Sequence[Path]) -> None:
    """Ask cells to end: running ones within seconds and with a checkpoint, others when they would start."""
    for folder in folders:
        if state_of(folder).state not in board.OVER:
            (folder / board.END).touch()


def table(name: str, states: States) -> Table:
    """Return the table of a grid's cells: state, node, how much is done, and the time left."""
    rows = Table("cell", *(Column(header, no_wrap=True) for header in ("state", "node", "done", "left")))
    for folder, state in states.items():
        done, left = state.reason, ""
        if state.state == "running":
            line = board.last_line(folder)
            progress = PROGRESS.search(line)
            done, left = progress.groups() if progress else (line[:40], "")
        rows.add_row(folder.name.removeprefix(f"{name}-"), state.state, state.node, done, left)
    return rows


def _text(state: State) -> str:
    parts = [
        state.state,
        f"on {state.node}" if state.node else "",
        f"({state.reason})" if state.reason else "",
    ]
    return " ".join(part for part in parts if part)


def fetch(root: Path, *refs: str) -> None:
    """Fetch experiments by their refs; one that this checkout has under another commit is refused."""
    git_or_error(root, "fetch", "--quiet", "origin", *(f"{ref}:{ref}" for ref in refs))


def collect(root: Path, name: str, options: Options) -> None:
    """Fetch the finished cells of a grid's last submission, and show all; with `options.end`, end the others.

    Raises UserError: none was submitted, or a line for each cell that failed.
    """
    shared = shared_folder(root)
    orders = {folder: board.read_order(folder) for folder in shared.glob("cells/*/*")}
    folders = [folder for folder, order in orders.items() if order and order.grid == name]
    if not folders:
        raise UserError(f"no cell of {name} was submitted with {files.UNFINISHED}={shared}")
    newest = max(folders, key=lambda folder: (folder / board.ORDER).stat().st_mtime)
    folders = sorted(folder for folder in folders if folder.parent == newest.parent)
    if options.end:
        end(folders)
    states = {folder: state_of(folder) for folder in folders}
    Console().print(table(name, states))
    finish(root, name, states)


def finish(root: Path, name: str, states: States) -> None:
    """Fetch the finished cells; raise a UserError with a line for each cell that failed."""
    orders = {folder: board.read_order(folder) for folder in states}
    if refs := [order.ref for f, order in orders.items() if order and states[f].state == "finished"]:
        fetch(root, *refs)
    counts = Counter(state.state for state in states.values())
    print(
        f"{name}: {', '.join(f'{count} {state}' for state, count in counts.items()) or 'all finished before'}"
    )
    print(f"Compare them with `ganpipe compare --grid {name}`")
    if failed := [folder for folder, state in states.items() if state.state in ("failed", "lost")]:
        lines = [f"{folder.name}: {states[folder].reason}" for folder in failed]
        logs = failed[0].parent / "NAME" / "N.log"
        raise UserError("\n".join([*lines, f"the logs are {logs}; the same command retries what failed"]))
