"""A grid's experiments in DVC: which are there, which to queue, and running the queue.

Nothing here imports mlflow: the runs are mirrored by the stages themselves, in the queue as anywhere.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ganpipe import params
from ganpipe.common.errors import UserError
from ganpipe.experiments import recipes
from ganpipe.experiments.revisions import Found, code_of, finished, flat, opened, unpack
from ganpipe.fetch.catalogue import SOURCES
from ganpipe.fetch.paths import ADVICE, PLACEHOLDER, travels
from ganpipe.params import Params

POLL = 1.0  # seconds between looks at the queue
PATIENCE = 20.0  # seconds with experiments waiting and none running, before workers are started again
ATTEMPTS = 3  # starts of workers that may pass without an experiment beginning
# What tells why a stage failed: an error of ganpipe's or of Python's; DVC's own line only says that it did.
REASONS = (re.compile(r"^ganpipe \w+: (?:error: )?.+"), re.compile(r"^[\w.]*(?:Error|Exception|Exit)\b.*"))


def grid(
    root: Path, name: str, seeds: int = 1, settings: Iterable[str] = (), run: bool = False, jobs: int = 1
) -> None:
    """Queue what a grid lacks, a DVC experiment for each cell and seed; run it if asked; say what was done.

    An experiment is left alone where one of its name, params and code is finished, queued or running.

    Args:
        root: the checkout.
        name: the grid's, in params.yaml.
        seeds: experiments of each cell, with train.seed 0, 1, 2 …
        settings: words for every cell.
        run: start workers and wait for the experiments.
        jobs: experiments at a time.

    Raises:
        UserError: before anything is queued, one line for each cell that cannot be; or, after all have ended,
            one line for each that failed.
    """
    wanted = _wanted(params.load(root / params.PARAMS_FILE), root, name, seeds, list(settings))
    with opened(root) as repo:
        new, states = _missing(repo, root, wanted)
        for experiment in new:
            words = recipes.overrides(wanted[experiment][0].words)
            repo.experiments.run(queue=True, name=experiment, params=words)
        counts = [f"{states.count(state)} {state} before" for state in ("finished", "running", "queued")]
        counts = [text for text in counts if not text.startswith("0 ")]
        print(f"{name}: {', '.join([f'{len(new)} of {len(wanted)} experiments queued', *counts])}")
        if run:
            _run(repo, root, set(wanted), states.count("finished"), jobs)
        elif len(wanted) > states.count("finished"):
            print(f"Run them with `ganpipe grid {name} --run` or `dvc queue start`")
    print(f"Compare them with `ganpipe compare --grid {name}`")


def _wanted(
    values: Params, root: Path, name: str, seeds: int, settings: list[str]
) -> dict[str, tuple[recipes.Cell, Params]]:
    """Return experiment → its cell, with the seed among its words, and its params.

    Raises:
        UserError: one line for each cell that the params refuse or whose pictures a queued copy cannot see.
    """
    wanted: dict[str, tuple[recipes.Cell, Params]] = {}
    problems: list[str] = []
    cells: dict[str, str] = {}
    for cell in recipes.cells(values, name, settings):
        try:
            after = recipes.applied(values, cell.words, cell.name)
        except UserError as error:
            problems.append(str(error))
            continue
        twin = cells.setdefault(str(flat(after)), cell.name)
        if twin != cell.name or f"{cell.name}-s0" in wanted:
            problems.append(f"{cell.name}: the cell {twin} has the same params, or the same name")
        if unseen := _unseen(root, after):
            problems.append(f"{cell.name}: {unseen}")
        for seed in range(seeds):
            word = f"{recipes.SEED}={seed}"
            seeded = recipes.Cell(cell.name, (*cell.words, word))
            wanted[f"{cell.name}-s{seed}"] = seeded, recipes.applied(after, [word], cell.name)
    if problems:
        raise UserError("\n".join(problems))
    return wanted


def _unseen(root: Path, values: Params) -> str:
    """Return why a queued experiment, which runs in a copy of what git tracks, could not read fetch.path."""
    path = values.fetch.path
    if SOURCES[values.fetch.source].needs_path and path == PLACEHOLDER:
        return "fetch.path: names no pictures; give theirs with --set fetch.path=/a/folder"
    if not (root / path).exists():
        return f"fetch.path: {path} is not there"
    if Path(path).is_absolute() or travels(root / path, root):
        return ""
    return f"fetch.path: {path}: {ADVICE.format(path=path)}"


def _missing(
    repo: Any, root: Path, wanted: dict[str, tuple[recipes.Cell, Params]]
) -> tuple[list[str], list[str]]:
    """Return the experiments to queue, and the states of the others.

    Raises:
        UserError: one line for each name under which DVC holds something else.
    """
    queue, code = repo.experiments.celery_queue, code_of(root)
    held = {name: found for name, found in finished(repo).items() if name in wanted}
    waiting = [("queued", entry) for entry in queue.iter_queued()]
    running = [("running", entry) for entry in queue.iter_active()]
    alive = not running or bool(queue.worker_status())
    for state, entry in (*waiting, *running):
        if entry.name in wanted:
            held.setdefault(entry.name, []).insert(0, Found(state, entry.stash_rev, entry.baseline_rev))
    new, states, problems = [], [], []
    for name, (_, values) in wanted.items():
        here = [each for each in held.get(name, ()) if _holds(root, each, values, code)]
        state = here[0].state if here else ""
        if state == "running" and not alive:
            problems.append(f"{name}: its worker is gone; `dvc queue kill {name}`, and run this again")
        elif state:
            states.append(state)
        elif clash := next((e for e in held.get(name, ()) if e.baseline == repo.scm.get_rev()), None):
            remove = "dvc exp remove" if clash.state == "finished" else "dvc queue remove"
            problems.append(f"{name}: {clash.state} with other params or code; `{remove} {name}`")
        else:
            new.append(name)
    if problems:
        raise UserError("\n".join(problems))
    return new, states


def _holds(root: Path, found: Found, values: Params, code: str) -> bool:
    """Say whether an experiment is whole, or on its way to be, and has these params and this code."""
    with TemporaryDirectory(prefix="ganpipe-") as place:
        try:
            has, last = unpack(root, found.revision, Path(place))
            same = flat(has) == flat(values) and code_of(Path(place)) == code
        except (UserError, KeyError, ValueError, SyntaxError):  # an older version's
            return False
    return same and (last == "evaluate" or found.state != "finished")


def _run(repo: Any, root: Path, names: set[str], done: int, jobs: int) -> None:
    """Run the queue until none of the named experiments waits or runs, with a bar and a line for each.

    Raises:
        UserError: one line for each experiment that failed.
        SystemExit: Ctrl-C; running experiments keep a checkpoint, the others stay in the queue.
    """
    queue, console = repo.experiments.celery_queue, Console(stderr=True, highlight=False, soft_wrap=True)
    left = {e.stash_rev: e.name for e in (*queue.iter_active(), *queue.iter_queued()) if e.name in names}
    total, failed = done + len(left), dict[str, str]()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    attempts, last_active = 0, -PATIENCE
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("grid", total=total, completed=done, note="")
        try:
            while left:
                active = list(queue.iter_active())
                if active:
                    attempts, last_active = 0, time.monotonic()
                elif time.monotonic() - last_active > PATIENCE:  # at first, and where a worker has died
                    if attempts == ATTEMPTS:
                        raise UserError("DVC's workers end at once; `dvc queue start -v` tells why")
                    _start(root, jobs)
                    attempts, last_active = attempts + 1, time.monotonic()
                for entry, result in queue.iter_done():
                    if name := left.pop(entry.stash_rev, None):
                        done += 1
                        if not (result and result.ref_info):
                            failed[name] = reason(_log(queue, entry.stash_rev))
                        ended = f"failed: {failed[name]}" if name in failed else "finished"
                        console.print(f"{done}/{total} {name}: {ended}", markup=False)
                running = next((entry for entry in active if entry.stash_rev in left), None)
                lines = _log(queue, running.stash_rev).split("\n") if running else [""]
                note = next((line for line in reversed(lines) if line.strip()), "")
                bar.update(task, completed=done, note=note[: console.width // 2])
                time.sleep(POLL if left else 0)
        except KeyboardInterrupt:
            bar.stop()
            _stop(queue, left)
            console.print(f"Stopped, {len(left)} experiments left; the same command goes on with them.")
            raise SystemExit(130) from None
    if failed:
        lines = [f"{name}: {why}" for name, why in failed.items()]
        lines.append(f"{len(failed)} failed: `dvc queue logs NAME` shows all, the same command tries again")
        raise UserError("\n".join(lines))


def _stop(queue: Any, left: dict[str, str]) -> None:
    """Let workers take nothing more, interrupt these experiments, and wait until they have ended."""
    from dvc.exceptions import DvcException

    queue.shutdown()
    for entry in list(queue.iter_active()):
        if entry.stash_rev in left:
            with suppress(DvcException):  # it has ended meanwhile
                queue.kill([entry.name])
    while any(entry.stash_rev in left for entry in queue.iter_active()):
        time.sleep(POLL)
    for entry, _ in queue.iter_success():
        left.pop(entry.stash_rev, None)


def _start(root: Path, jobs: int) -> None:
    """Start DVC's workers, which outlive this process; those that run already count."""
    # DVC starts workers as `dvc`, and stages run as `python`: both must be the ones that run here.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "dvc", "queue", "start", "--jobs", str(jobs)]
    # No pipes: the workers would keep them open for as long as they live.
    ended = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {"PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if ended.returncode:
        raise UserError(f"workers do not start; `{' '.join(command[2:])}` tells why")


def _log(queue: Any, revision: str) -> str:
    """Return the end of what an experiment has printed; empty where it has not begun."""
    process = queue.proc.get(revision)
    if process is None or not process.stdout or not Path(process.stdout).exists():
        return ""
    with open(process.stdout, "rb") as file:
        file.seek(max(0, os.path.getsize(process.stdout) - 20_000))
        return file.read().decode(errors="replace")


def reason(log: str) -> str:
    """Return the line of a log that tells best why it failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for pattern in REASONS:
        if found := [line for line in lines if pattern.match(line)]:
            return found[-1]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it failed before its first stage; see .dvc/tmp/exps/celery/*.out"])[-1]
