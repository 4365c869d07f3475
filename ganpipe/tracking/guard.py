"""Run a command until it ends or stdin closes: a pipe closes however its writer ends, even by `kill -9`.

`python -m ganpipe.tracking.guard COMMAND` has to run in a session of its own, which it ends as a whole.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial

MAX_END = 30.0  # seconds that the command, and what it started, have to end after SIGTERM
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, prctl(2)


def guard(command: list[str]) -> None:
    """Run the command; after stdin has closed or the command has ended, end all processes of the session."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the guard outlives the signal that it sends to all
    # Slurm warns all processes of a job of its time limit; who submitted it ends the command through stdin.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # a training whose dvc has ended becomes the guard's child
    # If the guard itself is killed, as Ray does with children, the command gets SIGTERM.
    end_too = partial(_prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_too)
    ending = threading.Event()

    def end() -> None:
        ending.set()
        os.killpg(0, signal.SIGTERM)
        threading.Timer(MAX_END, os.killpg, (0, signal.SIGKILL)).start()

    def end_with_stdin() -> None:
        sys.stdin.read()
        end()

    threading.Thread(target=end_with_stdin, daemon=True).start()
    if server.wait() < 0 and not ending.is_set():  # by a signal, such as Slurm's to all processes of a job
        end()
    with suppress(ChildProcessError):  # no child is left
        while ending.is_set():
            os.wait()  # such as for a training that writes its checkpoint
    os.killpg(0, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    guard(sys.argv[1:])
