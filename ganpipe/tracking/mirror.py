"""The MLflow mirror of stages/: one idempotent update completes an experiment's run from its files.

MLflow is never the truth. Every update reads what the run holds and sends only what is missing.
"""

import json
import os
import select
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import Any, cast

import psutil

from ganpipe.common import processes
from ganpipe.common.errors import Interrupted
from ganpipe.common.files import main_checkout
from ganpipe.common.stages import OUTPUTS, stage_folder
from ganpipe.tracking.identity import TRACKED, Experiment, Folders, Stage, identify
from ganpipe.tracking.model import WEIGHTS, send_generator
from ganpipe.tracking.run import ATTEMPT, TABLES, Status, TrackedRun
from ganpipe.tracking.store import connect, database, failure, reported, update_lock

# The files of each stage that are sent unchanged, and further ones of train that are read.
ARTIFACTS: dict[Stage, tuple[str, ...]] = {
    "train": ("events.csv",),
    "sample": tuple(name for name in OUTPUTS["sample"] if not name.endswith(".npy")),
    "evaluate": OUTPUTS["evaluate"],
}
TRAIN_FILES = ("model.json", *TABLES, "grids")
ENDING = ("ended", "interventions")  # keys of model.json that are written when the training ends
FINAL_UPDATE = 180.0  # seconds that the end of a stage waits for the last update, on a busy server
MAX_FINAL_FAILURE = 8.0  # seconds: a server that took longer to fail is not tried again at the end
MAX_PAUSE = 60.0  # seconds between attempts while the server is unreachable


def stage_folders(root: Path, last: Stage, train_folder: Path | None = None) -> Folders:
    """Return the folders of the tracked stages up to `last`; train_folder replaces stages/train."""
    folders = {stage: stage_folder(root, stage) for stage in TRACKED[: TRACKED.index(last) + 1]}
    return folders | ({"train": train_folder} if train_folder else {})


def update(
    home: Path, experiment: Experiment, folders: Folders, status: Status | None, attempt: str = ""
) -> TrackedRun:
    """Bring an experiment's run up to date with its stages' files; a second call changes nothing.

    The folders are those of the stages that belong to the experiment: none, or train and stages after it.
    Status and attempt are as in TrackedRun.set_status.

    Raises:
        UserError: the trained model belongs to other params, or MLflow's experiment was deleted.
        FileNotFoundError: a file to be sent is missing.
        Exception: as `connect`; a store of artifacts raises its own.
    """
    train = folders.get("train")
    model = json.loads((train / "model.json").read_text(encoding="utf-8")) if train else {}
    if model:
        experiment.check(model)
    with update_lock(home):  # two updates of the same run at a time would send the same points
        run = TrackedRun.open(*connect(home), experiment, attempt)
        run.describe()
        if train:
            for table, metrics in TABLES.items():
                run.send_table(train / table, metrics)
            run.set_tags({f"ganpipe.{name}": str(model[name]) for name in ENDING if name in model})
            run.send_grids(train / "grids", model["train_images"])
            scores: dict[str, Any] = {}
            if evaluate := folders.get("evaluate"):
                scores = json.loads((evaluate / "metrics.json").read_text(encoding="utf-8"))
                numbers = {f"eval/{k}": v for k, v in scores.items() if type(v) in (int, float)}
                run.send_numbers(numbers, model["nimg"])
                run.send_snapshots(evaluate / "snapshots.csv")
            for stage, folder in folders.items():
                for file in ARTIFACTS[stage]:
                    run.send_file(folder / file)
            run.send_page(home, train, model, scores)
            if status == "FINISHED" and (train / WEIGHTS).exists():
                send_generator(run, train)
        run.set_status(status, attempt)
    return run


@contextmanager
def recording(
    root: Path, stage: Stage, train_folder: Path | None = None, interval: float = 5.0
) -> Iterator[None]:
    """Mirror a stage while it runs (train: every `interval` seconds) and once more after it ends or fails.

    Never raises into the stage and never delays its loop. The updates run in another process: a thread would
    hold Python's lock for 100 ms and more while it imports mlflow and collects garbage. That process survives
    a `kill -9` of the stage and then sets the run to KILLED. A line on stderr says if the last update failed.
    The train folder holds train's files until train succeeds.

    The process starts at once for a training that resumes, whose run may be KILLED, else after two intervals.
    A shorter stage that succeeds is left to the process of the last stage, evaluate: loading MLflow takes
    seconds.
    """
    attempt = f"{psutil.Process().create_time():.2f} {processes.NODE} {os.getpid()}"
    arguments = [*map(str, (root, stage, interval, attempt, train_folder or ""))]
    mirrors: list[Popen[str]] = []
    resumes = train_folder is not None and (train_folder / "model.json").exists()
    timer = threading.Timer(0 if resumes else 2 * interval, lambda: mirrors.append(_start(arguments)))
    timer.daemon = True
    timer.start()
    ended_by: BaseException | None = None
    try:
        yield
    except BaseException as error:
        ended_by = error
        raise
    finally:
        timer.cancel()
        timer.join()  # it may be starting the process
        if not mirrors and (ended_by or resumes or stage == TRACKED[-1]):
            mirrors.append(_start(arguments))
        for mirror in mirrors:
            if problem := _finish(mirror, status_after(ended_by)):
                print(f"MLflow is not up to date: {problem}", file=sys.stderr)


def _start(arguments: Sequence[str]) -> Popen[str]:
    """Start a stage's mirror, in a session of its own, which keeps Ctrl-C away from it."""
    command = [sys.executable, "-m", "ganpipe.tracking.mirror", *arguments]
    return Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, encoding="utf-8", start_new_session=True)


def _finish(mirror: Popen[str], status: Status) -> str:
    """Tell a mirror through its pipe how the stage ended, and return why its last update failed, or ""."""
    remedy = "`ganpipe sync` completes the run"
    try:
        problem = mirror.communicate(status, timeout=FINAL_UPDATE)[0].strip()
    except TimeoutExpired:
        return f"not done within {FINAL_UPDATE:.0f} s; {remedy}"
    unexplained = f"its process ended with code {mirror.returncode}; {remedy}"
    return problem or (unexplained if mirror.returncode else "")


def status_after(ended_by: BaseException | None) -> Status:
    """Return the status of a run whose stage ended with an exception; None: it succeeded."""
    if ended_by is None:
        return "FINISHED"
    return "KILLED" if isinstance(ended_by, Interrupted | KeyboardInterrupt | SystemExit) else "FAILED"


def _follow(root: Path, stage: Stage, interval: float, attempt: str, train_folder: Path | None) -> str:
    """Update the run until stdin tells how the stage ended, then once more; return why that failed, or ""."""
    os.nice(5)  # the stage has priority
    status: Status = "RUNNING"
    experiment: Experiment | None = None
    error: Exception | None = None
    pause = interval
    while True:
        start = time.monotonic()
        try:
            # Identified once, at the start: code that is edited meanwhile is not the code that runs.
            experiment = experiment or identify(root)
            folders = _folders_so_far(root, stage, status, train_folder)
            update(main_checkout(root), experiment, folders, status, attempt)
            error, pause = None, interval
        except Exception as problem:  # of any kind; the stage reports it when it ends
            # A train that succeeds moves its files; the last update reads them from stages/.
            moving = isinstance(problem, FileNotFoundError) and status == "RUNNING"
            error, pause = (None, interval) if moving else (problem, min(2 * pause, MAX_PAUSE))
        if status != "RUNNING":
            break
        slow_failure = error is not None and time.monotonic() - start > MAX_FINAL_FAILURE
        timeout = pause if error or stage == "train" else None
        if select.select([sys.stdin], [], [], timeout)[0]:
            # A stage that was killed closes the pipe without a word.
            status = cast(Status, sys.stdin.readline() or "KILLED")
            if slow_failure:
                break
    return failure(main_checkout(root), error) if error else ""


def _folders_so_far(root: Path, stage: Stage, status: Status, train_folder: Path | None) -> Folders:
    """Return the folders of the complete stages, and the growing one of train."""
    if status == "FINISHED":
        return stage_folders(root, stage)
    if stage != "train":
        return stage_folders(root, TRACKED[TRACKED.index(stage) - 1])
    begun = train_folder is not None and (train_folder / "model.json").exists()
    return stage_folders(root, "train", train_folder) if begun else {}


def left_running(root: Path) -> list[tuple[str, str]]:
    """Return id and name of the runs that are RUNNING although their stage's process on this machine is gone.

    Raise a UserError if MLflow does not answer.
    """
    home = main_checkout(root)
    if (file := database(home)) and not file.exists():
        return []
    with reported(home):
        client, experiment_id = connect(home)
        running = client.search_runs([experiment_id], "attributes.status = 'RUNNING'")
    return [(run.info.run_id, run.info.run_name) for run in running if _is_gone(run.data.tags.get(ATTEMPT))]


def _is_gone(attempt: str | None) -> bool:
    """Say whether the process of an attempt is gone; False for another machine's and for an unknown one."""
    try:
        start, host, pid = (attempt or "").split(" ")
        return host == processes.NODE and not processes.alive(int(pid), float(start))
    except (ValueError, OverflowError):  # another program's tag
        return False


def end_killed(root: Path, run_id: str) -> None:
    """Set a run's status to KILLED."""
    connect(main_checkout(root))[0].set_terminated(run_id, "KILLED")


if __name__ == "__main__":
    root, stage, interval, attempt, train_folder = sys.argv[1:]
    growing = Path(train_folder) if train_folder else None
    with redirect_stdout(sys.stderr):
        problem = _follow(Path(root), cast(Stage, stage), float(interval), attempt, growing)
    sys.stdout.buffer.write(problem.encode(errors="replace"))
