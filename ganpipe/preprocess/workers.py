"""Work in processes that may crash, hang or run out of memory: a task that does so is lost alone."""

import gc
import multiprocessing
import os
import resource
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, NewType, TypeVar

import psutil
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from ganpipe.common.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
Lost = NewType("Lost", str)  # the reason why a task has no result: the same text in every run
# Seconds in which a worker must have started, and chunks scheduled ahead for each worker.
START, AHEAD = 120.0, 8
# Imported once, by the server that forks all workers; not ganpipe, which may not be on the server's path.
PRELOADED = ["numpy", "PIL.Image", "pebble", "psutil", "pydantic", "ruamel.yaml"]
OUT_OF_MEMORY = 77  # exit code of a worker that reached its memory limit
LOSSES = ProcessExpired, TimeoutError  # what pebble raises for a task whose worker died or was stopped


class Limits(NamedTuple):
    """What one task may use."""

    seconds: float
    memory: int  # bytes beyond those of an idle worker


def in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, limits: Limits, chunk: int = 64
) -> Iterator[Result | Lost]:
    """Yield the result of function(task), or Lost, for each task, in their order, from `workers` processes.

    A worker that dies, hangs or exceeds a limit is replaced. The tasks of its chunk are tried once more, one
    by one; only a task that ends its worker again is lost. An exception of the function ends the whole work.

    Function, tasks and results are pickled. A worker gets `chunk` tasks at a time; AHEAD chunks for each
    worker are read in advance. The limits hold for each task, until its function calls `lift_time_limit`.

    Raises UserError: the workers cannot start or keep running.
    """
    fresh = iter(tasks)
    # A server without threads forks the workers: a fork of this process could copy locks held by its threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    pool = ProcessPool(workers, initializer=_start, initargs=(limits.memory,), context=context)
    run = partial(_run, function, limits.seconds)

    def schedule(part: list[Task]) -> ProcessFuture[list[Result]]:
        try:  # The worker's own alarm comes first; this timeout ends stopped workers and slow chunks.
            return pool.schedule(run, (part,), timeout=2 * limits.seconds)
        except RuntimeError as error:  # pebble's, once the pool is broken
            raise BrokenProcessPool(error) from None

    ahead: deque[tuple[list[Task], ProcessFuture[list[Result]]]] = deque()
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


def lift_time_limit() -> None:
    """Let the rest of a task take as long as it needs; called by the task's function, in a worker."""
    signal.setitimer(signal.ITIMER_REAL, 0)


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
    if Path("/proc").exists():
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _run(function: Callable[[Task], Result], seconds: float, tasks: list[Task]) -> list[Result]:
    """Return the results of some tasks, in a worker."""
    results = []
    try:
        for task in tasks:
            # The kernel ends a worker that hangs, even in C code, and even after its parent has died.
            signal.setitimer(signal.ITIMER_REAL, seconds)
            results.append(function(task))
        return results
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    finally:
        lift_time_limit()
