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

GRACE = 30.0  # seconds that the other ranks have to end by themselves once one has ended
PARENT = "GANPIPE_LAUNCHER"  # says that stdin is a pipe from the launcher
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def is_rank() -> bool:
    """Say whether this process is one of several ranks already, torchrun's or the launcher's."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def is_first_rank() -> bool:
    """Say whether this process writes: it is alone or the first of the ranks."""
    return os.environ.get("RANK", "0") == "0"


def exit_with_launcher() -> None:
    """End this process at once when its launcher is gone, even by `kill -9`: no rank outlives it."""
    if os.environ.pop(PARENT, None):

        def wait() -> None:
            os.read(0, 1)  # not sys.stdin, whose lock would be taken when Python ends
            os._exit(1)

        threading.Thread(target=wait, name="launcher", daemon=True).start()


def launch(count: int, words: list[str]) -> int:
    """Run `python -m ganpipe` with these words in `count` ranks, and wait for all.

    Signals reach the ranks, which agree on the step to stop after. When one ends in failure, the others get
    GRACE seconds to end by themselves, then are killed: checkpoints are whole at any moment.

    Returns:
        0, or the exit code of the first rank that ended by itself in failure.

    Raises:
        UserError: a rank was killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), PARENT: "1"}
    # As torchrun does: ranks that each take all cores would only get in each other's way.
    place["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = [sys.executable, "-m", "ganpipe", *words]
    ranks: list[subprocess.Popen[bytes]] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(signum)

    before = {each: signal.signal(each, forward) for each in FORWARDED}
    try:
        for i in range(count):
            environment = os.environ | place | {"RANK": str(i), "LOCAL_RANK": str(i)}
            # A group of its own: Ctrl-C reaches each rank once, through here.
            ranks.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
            )
        return _wait(ranks)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait()
        for each, handler in before.items():
            signal.signal(each, handler)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    deadline = float("inf")
    failed: dict[int, int] = {}
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        for i, rank in enumerate(ranks):
            if rank.poll() and i not in failed:
                failed[i] = rank.returncode
                deadline = min(deadline, time.monotonic() + GRACE)
        time.sleep(0.2)
    failed |= {i: rank.returncode for i, rank in enumerate(ranks) if rank.returncode and i not in failed}
    # A rank that is killed makes the others fail, perhaps before it is seen here.
    for i, code in failed.items():
        if code < 0:
            raise UserError(
                f"rank {i} of {len(ranks)} was killed by {signal.Signals(-code).name}, and the others ended; "
                f"run it again to go on from the last checkpoint"
            )
    return next(iter(failed.values()), 0)
