"""Cells on Slurm through submitit: one array job, which Slurm queues, places, limits in time and requeues."""

import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ganpipe.cluster import board, cell
from ganpipe.cluster.options import Options
from ganpipe.common import processes

REQUEUES = 99  # how often a cell that reaches its time limit is queued again


def problems(options: Options) -> list[str]:
    """Return why nothing can be submitted, a line each."""
    if find_spec("submitit") is None:
        return ["submitit is not installed; `pip install 'ganpipe[slurm]'`"]
    if shutil.which("sbatch") is None:
        return ["there is no sbatch on this machine; run this on a login node of the Slurm cluster"]
    listed = _ask("sinfo", "--noheader", "--format=%R")
    known = listed.stdout.split() if listed else []
    if options.where and options.where not in known:
        return [f"--on slurm={options.where}: no such partition; known: {', '.join(known) or 'none'}"]
    return []


class Cell:
    """A cell as submitit pickles it."""

    def __call__(self, folder: Path) -> str:
        """Run the cell of a folder of the board.

        Slurm sends SIGTERM before it queues the cell again or ends it. This process then exits without a
        verdict on the cell, whose training has Slurm's KillWait, 30 seconds, to write a checkpoint.
        """
        signal.signal(signal.SIGTERM, _exit_once)
        return cell.run(folder)

    def checkpoint(self, folder: Path) -> Any:
        """Return what to queue again when the time limit is near: the cell, which resumes its training."""
        from submitit.helpers import DelayedSubmission

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it follows, and this process exits already
        return DelayedSubmission(self, folder)


def _exit_once(signum: int, frame: object) -> None:
    signal.signal(signum, signal.SIG_IGN)
    sys.exit(128 + signum)


def submit(folders: Sequence[Path], options: Options, files: Path, cluster: str = "slurm") -> None:
    """Submit cells as one array; `files` receives submitit's files, and must be seen by all nodes.

    `cluster` is submitit's name of the executor; "local" runs all cells on this machine at once.
    """
    import submitit

    executor = submitit.AutoExecutor(files, cluster=cluster, slurm_max_num_timeout=REQUEUES)
    executor.update_parameters(
        name="ganpipe",
        timeout_min=math.ceil(options.hours * 60),
        cpus_per_task=options.cpus,
        **({"gpus_per_node": gpus} if (gpus := gpus_of(options)) else {}),
        **({"slurm_partition": options.where} if options.where else {}),
    )
    for folder, job in zip(folders, executor.map_array(Cell(), folders), strict=True):
        board.write_job(folder, f"{cluster} {job.job_id}")


def gpus_of(options: Options) -> int:
    """Return the GPUs of a cell; one if not given, which is what a partition for training has."""
    return 1 if options.gpus is None else options.gpus


def alive(job: str) -> bool:
    """Return whether a job waits or runs; True if Slurm does not answer, as a busy one may not."""
    cluster, number = job.split()
    if cluster == "local":
        return processes.start_of(int(number)) < math.inf
    done = _ask("squeue", "--noheader", "--jobs", number)
    return not done or bool(done.stdout.strip() or (done.returncode and "Invalid job id" not in done.stderr))


def _ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    """Run a program of Slurm; None: it does not answer."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    return None
