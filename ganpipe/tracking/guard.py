"""Run a command until it ends or stdin closes: a pipe closes however its writer ends, even by `kill -9`.

`python -m ganpipe.tracking.guard COMMAND` has to run in a session of its own, which it ends as a whole.
"""

import os
import signal
import subprocess
import sys
import threading

MAX_END = 10.0  # seconds that the command has to end after SIGTERM


def guard(command: list[str]) -> None:
    """Run the command; after stdin has closed or the command has ended, end all processes of the session."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the guard outlives the signal that it sends to all
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end_with_stdin() -> None:
        sys.stdin.read()
        os.killpg(0, signal.SIGTERM)
        threading.Timer(MAX_END, os.killpg, (0, signal.SIGKILL)).start()

    threading.Thread(target=end_with_stdin, daemon=True).start()
    server.wait()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    guard(sys.argv[1:])
