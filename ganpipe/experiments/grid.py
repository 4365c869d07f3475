"""Queue a grid's experiments in DVC, each once, and run the queue."""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ganpipe import params
from ganpipe.common.errors import UserError
from ganpipe.device import visible_gpus
from ganpipe.experiments import recipes, revisions
from ganpipe.experiments.run import dvc_environment
from ganpipe.fetch.paths import experiment_problem
from ganpipe.params import Params

POLL, REST = 3.0, 10  # seconds between looks at the queue, or REST times as long as the last one took
PATIENCE = 20.0  # seconds with fewer experiments than could run, after which workers are started again
ATTEMPTS = 3  # consecutive starts of workers without a running experiment before giving up
# How the line begins that tells why a stage failed: best is an error of ganpipe, then of Python, then of DVC.
REASONS = (r"ganpipe \w+: .", r"[\w.]*(Error|Exception|Exit)\b", "ERROR", "")

# Experiment → its settings on top of params.yaml, seed included, and all its params.
Plan = dict[str, tuple[list[str], dict[str, Any]]]


def grid(
    root: Path, name: str, seeds: int = 1, settings: Iterable[str] = (), run: bool = False, jobs: int = 1
) -> None:
    """Queue a DVC experiment for each cell and seed (train.seed 0, 1, 2 …) of a grid that has none yet.

    An experiment is skipped if one with its name, params and code is finished, queued or running. `settings`
    override those of every cell. With `run`, the queue runs, `jobs` at a time, and this waits for its end.

    Raises:
        UserError: before anything is queued, one line for each wrong cell; or, after all have ended, one line
            for each experiment that failed.
    """
    plan = planned(params.load(root / params.PARAMS_FILE), root, name, seeds, settings)
    with revisions.open_repo(root) as repo:
        missing, states = to_run(repo, root, plan)
        for experiment in missing:
            overrides = recipes.hydra_overrides(plan[experiment][0])
            repo.experiments.run(queue=True, name=experiment, params=overrides)
        counts = [f"{len(missing)} of {len(plan)} experiments queued"]
        counts += [f"{count} {state} before" for state, count in states.items()]
        print(f"{name}: {', '.join(counts)}")
        if run:
            _run_queue(repo, root, set(plan), states["finished"], jobs)
        elif len(plan) > states["finished"]:
            print(f"Run them with `ganpipe grid {name} --run` or `dvc queue start`")
    print(f"Compare them with `ganpipe compare --grid {name}`")


def planned(values: Params, root: Path, name: str, seeds: int, settings: Iterable[str]) -> Plan:
    """Return the experiment of each cell and seed of a grid.

    Raises UserError: one line for each cell with wrong params, or with pictures that the queue cannot read.
    """
    plan: Plan = {}
    problems: list[str] = []
    names: dict[str, str] = {}  # params → the cell that has them
    for cell in recipes.grid_cells(values, name, settings):
        try:
            applied = recipes.apply_settings(values, cell.settings, cell.name)
        except UserError as error:
            problems.append(str(error))
            continue
        flat = revisions.flat_params(applied)
        twin = names.setdefault(str(flat), cell.name)
        if twin != cell.name or f"{cell.name}-s0" in plan:
            problems.append(f"{cell.name}: the cell {twin} has the same params, or the same name")
        if problem := experiment_problem(applied.fetch, root, queued=True):
            problems.append(f"{cell.name}: {problem}")
        for seed in range(seeds):
            seeded = [*cell.settings, f"{recipes.SEED}={seed}"]
            plan[f"{cell.name}-s{seed}"] = seeded, flat | {recipes.SEED: seed}
    if problems:
        raise UserError("\n".join(problems))
    return plan


def to_run(repo: Any, root: Path, plan: Plan, hub: str = "") -> tuple[list[str], Counter[str]]:
    """Return the names of the experiments to run, and how many others are finished, running or queued.

    With `hub`, a git remote, a finished experiment has to be removed there too, or it would come back.
    A UserError has a line for each name that DVC holds with other params or code, or whose worker died.
    """
    queue, code = repo.experiments.celery_queue, revisions.code_digest_of(root)
    held = revisions.finished(repo)
    for state, entries in (("queued", queue.iter_queued()), ("running", queue.iter_active())):
        for entry in entries:
            experiment = revisions.Experiment(state, entry.stash_rev, entry.baseline_rev)
            held.setdefault(entry.name, []).insert(0, experiment)
    missing, problems, states = [], [], Counter[str]()
    for name, (_, flat) in plan.items():
        experiments = held.get(name, [])
        state = next((e.state for e in experiments if _matches(root, e, (flat, code))), "")
        clash = next((e for e in experiments if e.baseline == repo.scm.get_rev()), None)
        if state == "running" and not queue.worker_status():
            problems.append(f"{name}: its worker died; `dvc queue kill {name}`, then run this command again")
        elif state:
            states[state] += 1
        elif clash:
            remove = "dvc exp remove" if clash.state == "finished" else "dvc queue remove"
            there = f" and `{remove} -g {hub} {name}`" if hub and clash.state == "finished" else ""
            problems.append(f"{name}: {clash.state} with other params or code; `{remove} {name}`{there}")
        else:
            missing.append(name)
    if problems:
        raise UserError("\n".join(problems))
    return missing, states


def _matches(root: Path, experiment: revisions.Experiment, wanted: tuple[dict[str, Any], str]) -> bool:
    """Say whether an experiment has the wanted params and code, and is complete unless it waits or runs."""
    try:
        flat, code, last = revisions.identity_of(root, experiment.revision)
    except revisions.UNREADABLE:
        return False
    return (flat, code) == wanted and (last == "evaluate" or experiment.state != "finished")


def _run_queue(repo: Any, root: Path, names: set[str], done: int, jobs: int) -> None:
    """Run the queue until none of the named experiments waits or runs, with a bar and a line for each result.

    After Ctrl-C running experiments keep a checkpoint, and the others stay in the queue.
    """
    queue, console = repo.experiments.celery_queue, Console(stderr=True, highlight=False, soft_wrap=True)
    waiting = {e.stash_rev: e.name for e in (*queue.iter_active(), *queue.iter_queued()) if e.name in names}
    total, failed = done + len(waiting), dict[str, str]()
    texts = MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}", markup=False)
    with Progress(BarColumn(), *texts, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("grid", total=total, completed=done, note="")
        try:
            for active in _poll_queue(queue, waiting, root, jobs):
                for entry, result in queue.iter_done():
                    if name := waiting.pop(entry.stash_rev, None):
                        done += 1
                        if not (result and result.ref_info):
                            failed[name] = failure_reason(_log(queue, entry.stash_rev))
                        outcome = f"failed: {failed[name]}" if name in failed else "finished"
                        console.print(f"{done}/{total} {name}: {outcome}", markup=False)
                running = [entry.stash_rev for entry in active if entry.stash_rev in waiting]
                note = _log(queue, running[0]).strip().rpartition("\n")[2] if running else ""
                bar.update(task, completed=done, note=note[: console.width // 2])
        except KeyboardInterrupt:
            bar.stop()
            _stop(queue, waiting)
            console.print(f"Stopped, {len(waiting)} experiments left; the same command resumes them.")
            raise SystemExit(130) from None
    if failed:
        lines = [f"{name}: {reason}" for name, reason in failed.items()]
        lines.append(f"{len(failed)} failed: `dvc queue logs NAME` shows all, the same command retries them")
        raise UserError("\n".join(lines))


def _poll_queue(queue: Any, waiting: dict[str, str], root: Path, jobs: int) -> Iterator[list[Any]]:
    """Yield the running entries while `waiting` is not empty; start workers, and again when one has ended."""
    starts, last_busy = 0, -PATIENCE
    while waiting:
        active = list(queue.iter_active())
        if len(active) >= min(jobs, len(waiting)):
            starts, last_busy = 0, time.monotonic()
        elif time.monotonic() - last_busy > PATIENCE:
            if starts >= ATTEMPTS and not active:
                raise UserError("DVC's workers end at once; `dvc queue start -v` shows the reason")
            _start_workers(queue, root, jobs)
            starts, last_busy = starts + 1, time.monotonic()
        began = time.monotonic()
        yield active
        # DVC reads all ended experiments at each look: 1.4 s after 30 of them.
        time.sleep(max(POLL, REST * (time.monotonic() - began)) if waiting else 0)


def _start_workers(queue: Any, root: Path, jobs: int) -> None:
    """Start DVC's workers, which outlive this process; workers that run already count.

    If several GPUs are visible and the user has chosen none, each worker gets one of them in turn.
    """
    gpus = visible_gpus()
    counts: dict[int, dict[str, str]] = {jobs: {}}  # workers that are to run → variables of the new ones
    if len(gpus) > 1 and not {"GANPIPE_DEVICE", "GANPIPE_DEVICES"} & os.environ.keys():
        counts = {i + 1: {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(jobs)}
    for count, variables in counts.items():
        command = ["dvc", "queue", "start", "--jobs", str(count)]
        # No pipes: the workers would keep them open for as long as they live.
        words, null = [sys.executable, "-m", *command], subprocess.DEVNULL
        if subprocess.call(words, cwd=root, env=dvc_environment() | variables, stdout=null, stderr=null):
            raise UserError(f"workers do not start; `{' '.join(command)}` shows the reason")
        deadline = time.monotonic() + PATIENCE
        while count < jobs and len(queue.worker_status()) < count and time.monotonic() < deadline:
            time.sleep(POLL)  # the next call would start a worker again that is not up yet


def _stop(queue: Any, waiting: dict[str, str]) -> None:
    """Keep workers from taking more experiments, interrupt those in `waiting`, and wait for their end."""
    from dvc.exceptions import DvcException

    queue.shutdown()
    for entry in list(queue.iter_active()):
        if entry.stash_rev in waiting:
            with suppress(DvcException):  # it has ended in the meantime
                queue.kill([entry.name])
    while any(entry.stash_rev in waiting for entry in queue.iter_active()):
        time.sleep(POLL)
    for entry, _ in queue.iter_success():
        waiting.pop(entry.stash_rev, None)


def _log(queue: Any, revision: str) -> str:
    """Return the last 20 kB of an experiment's output; empty if it has not begun."""
    process = queue.proc.get(revision)
    if process is None or not process.stdout or not Path(process.stdout).exists():
        return ""
    with open(process.stdout, "rb") as file:
        file.seek(max(0, os.path.getsize(process.stdout) - 20_000))
        return file.read().decode(errors="replace")


def failure_reason(log: str) -> str:
    """Return the line of a failed experiment's log that best tells why it failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for pattern in REASONS:
        if matches := [line for line in lines if re.match(pattern, line)]:
            return matches[-1]
    return "it failed before its first stage; see .dvc/tmp/exps/celery/*.out"
