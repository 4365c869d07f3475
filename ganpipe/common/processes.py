"""Whether a process is alive, and which dvc runs it."""

from contextlib import suppress

import psutil


def alive(pid: int, began: float) -> bool:
    """Say whether a process lives, and is not another one that got the same number later."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - began) < 60
    except psutil.NoSuchProcess:
        return False


def ancestry(pid: int, parent: int) -> list[tuple[int, int]]:
    """Return the (process, parent) pairs from a process to the dvc that runs it, or to who adopted it.

    Between them: the launcher of several ranks, or a shell that did not replace itself, as dash.
    """
    line = [(pid, parent)]
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        while "DVC_STAGE" in (above := psutil.Process(line[-1][1])).environ():
            line.append((above.pid, above.ppid()))
    return line
