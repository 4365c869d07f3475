"""MLflow's server on this machine alone, brought up to date, opened at the prepared view."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from ganpipe.common.errors import UserError
from ganpipe.tracking import mirror as tracking
from ganpipe.tracking import view

PORT = 5000  # MLflow's; another where it is taken
PATIENCE = 180.0  # seconds until a server has to answer


def ui(root: Path = Path(), port: int | None = None) -> None:
    """Bring MLflow up to date, start its server on loopback, print the view's address, and wait for Ctrl-C.

    Args:
        root: the checkout.
        port: None: 5000, or any free one.

    Raises:
        UserError: there is no run yet, the port is taken, or the server does not start.
    """
    with served(root, port) as address:
        print(address, flush=True)
        if "127.0.0.1" in address:
            print("Ctrl-C ends the server.", file=sys.stderr)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and so end the server
            signal.pause()


@contextmanager
def served(root: Path, port: int | None = None) -> Iterator[str]:
    """Give the address of the view while a server runs; where MLFLOW_TRACKING_URI names one, that is it."""
    for line in tracking.sync(root):
        print(line, file=sys.stderr)
    client, number = tracking.connection(root)
    if not client.search_runs([number], max_results=1):
        raise UserError(
            "no run yet; `dvc repro` or `dvc exp run` makes the first, then `ganpipe ui` shows it"
        )
    place, store = "", tracking.address(root)
    with suppress(Exception):  # the view is MLflow's own affair: without it, its page is shown
        place = view.write(client, number)
    if store.startswith("http"):
        yield store.rstrip("/") + place
        return
    port = _free(port)
    with _server(store, port):
        yield f"http://127.0.0.1:{port}{place}"


def _free(port: int | None) -> int:
    for wanted in (port,) if port else (PORT, 0):
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", wanted))
            return int(listener.getsockname()[1])
    raise UserError(f"--port: {port} is taken; give another, or none")


@contextmanager
def _server(store: str, port: int) -> Iterator[None]:
    words = ["server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port)]
    # One worker, and no processes for jobs: half the memory.
    light = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with TemporaryFile() as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--workers", "1"],
            env=os.environ | light,
            stdout=said,
            stderr=said,
            start_new_session=True,  # it has children, which end with it
        )
        try:
            _await(server, port, said)
            yield
        except KeyboardInterrupt:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _await(server: "subprocess.Popen[bytes]", port: int, said: IO[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"MLflow's server does not start: {lines[-1] if lines else 'it says nothing'}")
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return
        time.sleep(0.2)
    raise UserError(f"MLflow's server does not answer at port {port} within {PATIENCE:.0f} s")
