"""Signals that stop a training after its step, and the end of the dvc that runs it."""

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

import ganpipe
from ganpipe.common import processes
from ganpipe.train.devices.launch import STOP_SIGNALS

POLL = 0.5  # seconds between checks that dvc is still there
# Seconds in which a repeated signal is ignored: Ctrl-C can arrive twice, through dvc and the process group.
ECHO = 1.0


@functools.cache
def _ancestry() -> list[tuple[int, int]]:
    return processes.ancestry(os.getpid(), ganpipe.PARENT) if "DVC_STAGE" in os.environ else []


def dvc_process() -> tuple[int, float] | None:
    """Return number and start (seconds since 1970) of the dvc that runs this process, if one does."""
    if not _ancestry():
        return None
    pid = _ancestry()[-1][1]
    try:
        return pid, psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return pid, 0.0


def orphaned() -> bool:
    """Return whether dvc has died: then a process between dvc and this one has another parent."""
    try:
        return any(psutil.Process(child).ppid() != parent for child, parent in _ancestry())
    except psutil.NoSuchProcess:
        return True


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Record SIGTERM, SIGINT and SIGUSR1 in a list instead of exiting; a second one has its usual effect.

    The end of the dvc that runs this process counts as SIGTERM.
    """
    received: list[int] = []
    first, done = 0.0, threading.Event()

    def record(signum: int, frame: FrameType | None = None) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            received.append(signum)
        elif time.monotonic() - first > ECHO:
            signal.signal(signum, handlers[signal.Signals(signum)])
            signal.raise_signal(signum)

    def watch() -> None:
        while not done.wait(POLL):
            if orphaned():
                return record(signal.SIGTERM)

    handlers = {signum: signal.signal(signum, record) for signum in STOP_SIGNALS}
    if _ancestry():
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield received
    finally:
        done.set()
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
