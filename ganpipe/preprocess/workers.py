"""Work in processes that may crash, hang or run out of memory: a lost task costs itself only."""

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from ganpipe.common.errors import UserError

Task = TypeVar("Task")
Made = TypeVar("Made")
# Seconds between messages of a busy worker; with fewer, more tasks are in doubt when it is lost.
FLUSH = 0.1
# Seconds in which a worker must have started.
START = 120.0
# What is imported once for all workers; nothing of this package, whose place the server may not know.
PRELOADED = ["numpy", "PIL.Image"]
# Exit code of a worker that met its memory limit.
OUT_OF_MEMORY = 77


@dataclass(frozen=True)
class Lost:
    """What there is of a task instead of a result: why; the same text for every such task."""

    reason: str


@dataclass(frozen=True)
class Limits:
    """What one task may take: seconds, and bytes beyond what an idle worker has."""

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

    A worker that dies, hangs or needs too much memory is replaced. The tasks that it had not answered are
    tried again, each alone in its worker, and only one that ends that one too is lost.

    Args:
        function: to be pickled, as tasks and results are. An exception of it ends the whole work.
        tasks: read a few chunks ahead of what has been taken.
        workers: processes.
        limits: of each task.
        chunk: tasks that a worker gets in one message; 2·workers + 2 chunks of results wait at most.
        finish: called by a worker with what function returned for some tasks, in their order, before it sends
            them; returns their results.

    Raises:
        UserError: a worker cannot start.
    """
    fresh = iter(enumerate(tasks))
    doubtful: deque[tuple[int, Task]] = deque()
    done: dict[int, Any] = {}
    wanted = handed = 0
    pool: list[_Worker[Task, Made]] = []
    try:
        pool.extend(_Worker(function, limits, finish) for _ in range(workers))
        while True:
            for worker in pool:
                if worker.pending and (doubtful or worker.alone):
                    continue
                if doubtful:
                    worker.give([doubtful.popleft()], alone=True)
                elif len(worker.pending) <= chunk and handed <= wanted + (2 * workers + 1) * chunk:
                    part = list(islice(fresh, chunk))
                    handed += len(part)
                    worker.give(part)
            busy = {worker.connection: worker for worker in pool if worker.pending}
            if not busy:
                return
            ready = wait(list(busy), limits.seconds)
            for connection, worker in busy.items():
                overdue = connection not in ready and worker.overdue()
                answers = worker.answers() if connection in ready else None if overdue else []
                if answers is None:
                    reason = worker.lost(overdue)
                    pool[pool.index(worker)] = _Worker(function, limits, finish)
                    if worker.alone:
                        done[worker.pending[0][0]] = Lost(reason)
                    else:
                        doubtful.extend(worker.pending)
                else:
                    done.update(answers)
            while wanted in done:
                yield done.pop(wanted)
                wanted += 1
    finally:
        for worker in pool:
            worker.end()


class _Worker(Generic[Task, Made]):
    """A process, and the tasks (with their numbers) that it has not answered yet."""

    def __init__(
        self, function: Callable[[Task], Made], limits: Limits, finish: Callable[[list[Made]], list[Any]]
    ) -> None:
        self.limits = limits
        self.pending: deque[tuple[int, Task]] = deque()
        self.alone = self.started = False
        # From a server without threads: a fork of this process would copy locks that its threads may hold.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function, limits, finish), daemon=True)
        self.process.start()
        theirs.close()
        self.heard = time.monotonic()

    def give(self, tasks: list[tuple[int, Task]], alone: bool = False) -> None:
        """Hand over some tasks."""
        if tasks:
            self.alone = alone
            if self.started and not self.pending:
                self.heard = time.monotonic()
            self.pending.extend(tasks)
            with contextlib.suppress(OSError):  # It is dead, as the next look at its connection will tell.
                self.connection.send([task for _, task in tasks])

    def answers(self) -> list[tuple[int, Any]] | None:
        """Take what it has sent, with the tasks' numbers; None: it is dead."""
        try:
            answers = self.connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(answers, Exception):
            raise answers
        self.started, self.heard = True, time.monotonic()
        return [(self.pending.popleft()[0], answer) for answer in answers]

    def overdue(self) -> bool:
        """Say whether it has not even died of its own alarm: it is stopped."""
        most = 2 * self.limits.seconds + 2 * FLUSH if self.started else START
        return time.monotonic() - self.heard > most

    def lost(self, overdue: bool) -> str:
        """Say what it died of, or is to be killed for."""
        self.process.join(0 if overdue else 5)
        self.end()
        code = self.process.exitcode or 0
        if not self.started:
            raise UserError(
                f"a worker process does not start (exit code {code}); is there memory for it? "
                "use fewer (GANPIPE_WORKERS=1)"
            )
        if overdue or code == -signal.SIGALRM:
            return f"takes more than {self.limits.seconds:g} s to read"
        if code == OUT_OF_MEMORY:
            return f"takes more than {self.limits.memory >> 20:,} MB of memory to read"
        return f"crashes its reader ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"

    def end(self) -> None:
        """Kill it, whatever it does."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(
    connection: Connection,
    function: Callable[[Task], Made],
    limits: Limits,
    finish: Callable[[list[Made]], list[Any]],
) -> None:
    """Answer tasks until the other end closes. What libraries print here is lost."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's.
    _limit_memory(limits.memory)
    warnings.simplefilter("ignore")  # They would be printed, or be errors where Python is told so.
    gc.freeze()  # What is imported stays: no look through it for garbage.
    made: list[Made] = []
    try:
        connection.send(made)
        while True:
            tasks, sent = connection.recv(), time.monotonic()
            for task in tasks:
                # The kernel ends a worker that hangs, be it in C code, and even when its parent is gone.
                signal.setitimer(signal.ITIMER_REAL, limits.seconds)
                made.append(function(task))
                if time.monotonic() - sent > FLUSH or task is tasks[-1]:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    connection.send(finish(made))
                    made, sent = [], time.monotonic()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # The parent is gone, or wants no more.
    except Exception as error:
        connection.send(error)


def _limit_memory(most: int) -> None:
    """Let this process take `most` bytes of address space beyond what it has, where the system can say."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + most, resource.getrlimit(resource.RLIMIT_AS)[1]))
