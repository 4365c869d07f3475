"""Work in processes that may crash, hang or run out of memory: a task that does so is lost alone."""

import gc
import multiprocessing
import os
import resource
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from ganpipe.common.errors import UserError

Task = TypeVar("Task")
Made = TypeVar("Made")
# Seconds between two calls of `finish`, which bound the results that a worker holds in memory.
FINISH_EVERY = 0.1
# Seconds in which a worker must have started, and chunks scheduled ahead for each worker.
START, AHEAD = 120.0, 8
# Imported once, by the server that forks all workers; not ganpipe, which may not be on the server's path.
PRELOADED = ["numpy", "PIL.Image", "pebble", "pydantic", "ruamel.yaml"]
# Exit code of a worker that reached its memory limit.
OUT_OF_MEMORY = 77
# What pebble raises for a task whose worker died or was stopped.
LOSSES = ProcessExpired, TimeoutError


@dataclass(frozen=True)
class Lost:
    """A task that produced no result, and the reason: the same text in every run."""

    reason: str


@dataclass(frozen=True)
class Limits:
    """What one task may use: seconds, and bytes beyond those of an idle worker."""

    seconds: float
    memory: int


def in_order(
    function: Callable[[Task], Made],
    tasks: Iterable[Task],
    workers: int,
    limits: Limits,
    chunk: int = 64,
    finish: Callable[[list[Made]], list[Any]] = list,
) -> Iterator[Any]:
    """Yield the result of function(task), or Lost, for each task, in their order, from `workers` processes.

    A worker that dies, hangs or exceeds a limit is replaced. The tasks of its chunk are tried once more, one
    by one; only a task that ends its worker again is lost.

    Args:
        function: pickled, as are tasks and results. An exception that it raises ends the whole work.
        tasks: read up to AHEAD chunks a worker in advance.
        workers: number of processes.
        limits: of each task.
        chunk: tasks that a worker gets at a time.
        finish: called in the worker with consecutive return values of function; returns their results.

    Raises:
        UserError: the workers cannot start or keep running.
    """
    fresh = iter(tasks)
    # A server without threads forks the workers: a fork of this process could copy locks held by its threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    pool = ProcessPool(workers, initializer=_start, initargs=(limits.memory,), context=context)
    run = partial(_run, function, finish, limits.seconds)

    def schedule(part: list[Task]) -> ProcessFuture[list[Any]]:
        try:  # The worker's own alarm comes first; this timeout ends stopped workers and slow chunks.
            return pool.schedule(run, (part,), timeout=2 * limits.seconds)
        except RuntimeError as error:  # pebble's, once the pool is broken
            raise BrokenProcessPool(error) from None

    ahead: deque[tuple[list[Task], ProcessFuture[list[Any]]]] = deque()
    try:
        pool.schedule(int).result(START)
        while True:
            while len(ahead) < AHEAD * workers and (part := list(islice(fresh, chunk))):
                ahead.append((part, schedule(part)))
            if not ahead:
                return
            part, future = ahead.popleft()
            try:
                yield from future.result()
            except LOSSES:
                for retry in [schedule([task]) for task in part]:
                    try:
                        yield from retry.result()
                    except LOSSES as error:
                        yield Lost(_reason(error, limits))
    except (BrokenProcessPool, *LOSSES) as error:
        text = f"worker processes cannot start or keep running ({error}); is there enough memory? "
        raise UserError(text + "use fewer workers (GANPIPE_WORKERS=1)") from None
    finally:
        pool.stop()
        pool.join()


def _reason(error: Exception, limits: Limits) -> str:
    code = error.exitcode if isinstance(error, ProcessExpired) else -signal.SIGALRM
    if code == -signal.SIGALRM:
        return f"takes more than {limits.seconds:g} s to read"
    if code == OUT_OF_MEMORY:
        return f"takes more than {limits.memory >> 20:,} MB of memory to read"
    return f"crashes its reader ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


def _start(memory: int) -> None:
    """Prepare a worker: discard what libraries print, and limit its address space where /proc exists."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")  # They would be printed, or raised where Python is configured to.
    gc.freeze()  # What is imported stays: the garbage collector need not look through it.
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _run(
    function: Callable[[Task], Made],
    finish: Callable[[list[Made]], list[Any]],
    seconds: float,
    tasks: list[Task],
) -> list[Any]:
    """Return the finished results of some tasks, in a worker."""
    results: list[Any] = []
    made: list[Made] = []
    finished = time.monotonic()
    try:
        for task in tasks:
            # The kernel ends a worker that hangs, even in C code, and even after its parent has died.
            signal.setitimer(signal.ITIMER_REAL, seconds)
            made.append(function(task))
            if task is tasks[-1] or time.monotonic() - finished > FINISH_EVERY:
                signal.setitimer(signal.ITIMER_REAL, 0)
                results += finish(made)
                made, finished = [], time.monotonic()
        return results
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
