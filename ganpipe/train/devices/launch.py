"""Start the ranks of a training on one machine, and end them together. Imports nothing slow."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType

from ganpipe.common.errors import UserError

GRACE = 30.0  # seconds that the other ranks get to end after one has failed
PARENT = "GANPIPE_LAUNCHER"  # set where stdin is a pipe from the launcher
RESUME = "run the command again to resume from the last checkpoint"  # the remedy where a rank has died
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def is_rank() -> bool:
    """Return whether this process is already one of several ranks, started by torchrun or by `launch`."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def is_first_rank() -> bool:
    """Return whether this process writes: it trains alone or is rank 0."""
    return os.environ.get("RANK", "0") == "0"


def exit_with_launcher() -> None:
    """Exit at once when the launcher has died, even by `kill -9`, so that no rank outlives it."""
    if os.environ.pop(PARENT, None):

        def wait() -> None:
            os.read(0, 1)  # not sys.stdin, whose lock Python needs when it ends
            os._exit(1)

        threading.Thread(target=wait, name="launcher", daemon=True).start()


def launch(count: int, arguments: list[str]) -> int:
    """Run `python -m ganpipe` in `count` ranks; return 0, or the exit code of the first rank that failed.

    Signals are forwarded to the ranks, which agree on the step to stop after. When a rank fails, the others
    get GRACE seconds to end before they are killed, which harms no checkpoint. torchrun cannot replace this:
    SIGUSR1 and SIGKILL end it without its ranks, and its exit code after any failure or signal is 1.

    Raises UserError: a rank was killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"WORLD_SIZE": str(count), PARENT: "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # As torchrun does: if every rank used all cores, they would slow each other down.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    ranks: list[subprocess.Popen[bytes]] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(signum)

    handlers = {signum: signal.signal(signum, forward) for signum in STOP_SIGNALS}
    try:
        for i in range(count):
            own = environment | {"RANK": str(i), "LOCAL_RANK": str(i)}
            command = [sys.executable, "-m", "ganpipe", *arguments]
            # In a session of its own, so that Ctrl-C reaches each rank once, from here.
            ranks.append(subprocess.Popen(command, env=own, stdin=subprocess.PIPE, start_new_session=True))
        return _wait(ranks)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait()
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    ended: list[subprocess.Popen[bytes]] = []
    deadline = float("inf")
    while len(ended) < len(ranks) and time.monotonic() < deadline:
        time.sleep(0.2)
        ended += [rank for rank in ranks if rank.poll() is not None and rank not in ended]
        if any(rank.returncode for rank in ended):
            deadline = min(deadline, time.monotonic() + GRACE)
    # A killed rank makes the others fail, perhaps before its own end is seen here.
    for rank in ended:
        if rank.returncode < 0:
            name = signal.Signals(-rank.returncode).name
            killed = f"rank {ranks.index(rank)} of {len(ranks)} was killed by {name}"
            raise UserError(f"{killed} and the others ended; {RESUME}")
    return next((rank.returncode for rank in ended if rank.returncode), 0)
