"""Whether a process is alive, and which dvc runs it."""

import math
import socket
from contextlib import suppress

import psutil

NODE = socket.gethostname()  # this machine, beside whose name a process's number means something


def start_of(pid: int) -> float:
    """Return when a live process started, in seconds since 1970; infinity: it has ended."""
    try:
        process = psutil.Process(pid)
        return math.inf if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return math.inf


def alive(pid: int, began: float) -> bool:
    """Return whether the process that started at `began` (seconds since 1970) is alive, not a later one."""
    return abs(start_of(pid) - began) < 60


def ancestry(pid: int, parent: int) -> list[tuple[int, int]]:
    """Return (process, parent) pairs from a process up to the dvc that runs it, or to its adoptive parent.

    The launcher of several ranks may be between them, or a shell that did not replace itself, such as dash.
    """
    line = [(pid, parent)]
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        while "DVC_STAGE" in (above := psutil.Process(line[-1][1])).environ():
            line.append((above.pid, above.ppid()))
    return line
