"""Tasks for tests/test_workers.py; a file of its own, so that workers need not import pytest."""

import ctypes
import os
import signal
import time
from pathlib import Path

from ganpipe.common.errors import UserError
from ganpipe.preprocess.workers import lift_time_limit


def work(task: str, marks: Path | None = None) -> str:
    """Do what the task says, in a worker."""
    kind, _, rest = task.partition(" ")
    if kind == "crash":
        ctypes.string_at(0)
    elif kind == "exit":
        os._exit(int(rest))
    elif kind == "spin":
        while True:
            pass
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "fill":
        return str(len(bytearray(1 << 30)))
    elif kind == "raise":
        raise UserError(rest)
    elif kind == "once" and marks is not None and not (marks / rest).exists():
        (marks / rest).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "print":
        os.write(2, b"noise")
    elif kind == "slow":
        lift_time_limit()
        time.sleep(float(rest))
    elif kind == "large":
        return "x" * (1 << 20)
    return task
