"""Run a command until it ends or stdin closes: a pipe closes however its writer ends, even by `kill -9`.

`python -m ganpipe.tracking.guard COMMAND` has to run in a session of its own, which it ends as a whole.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
MAX_END = 10.0  # seconds that the command has to end after SIGTERM


def guard(command: list[str]) -> None:
    """Run the command; after stdin has closed or the command has ended, end all processes of the session."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the guard outlives the signal that it sends to all
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)

    def end_with_stdin() -> None:
        sys.stdin.read()
        os.killpg(0, signal.SIGTERM)
        threading.Timer(MAX_END, os.killpg, (0, signal.SIGKILL)).start()

    threading.Thread(target=end_with_stdin, daemon=True).start()
    server.wait()
    os.killpg(0, signal.SIGKILL)


def _end_with_parent() -> None:
    """Let Linux send SIGTERM to this process when the guard itself is killed, as by Ray."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    guard(sys.argv[1:])
