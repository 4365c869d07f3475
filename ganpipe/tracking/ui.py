"""MLflow's server on the loopback interface, with all runs up to date, opened at the prepared view."""

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
from ganpipe.tracking.store import address, connect
from ganpipe.tracking.sync import sync
from ganpipe.tracking.view import write_view

PORT = 5000  # MLflow's default
MAX_START = 180.0  # seconds that a server may take to answer


def ui(root: Path = Path(), port: int | None = None) -> None:
    """Sync MLflow, start its server on the loopback interface, print the view's address, wait for Ctrl-C.

    The default port is 5000, or a free one if 5000 is taken.

    Raises:
        UserError: there is no run yet, the port is taken, or the server does not start.
    """
    with served(root, port) as view_address:
        print(view_address, flush=True)
        if "127.0.0.1" in view_address:
            print("Ctrl-C stops the server.", file=sys.stderr)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs _server's finally
            signal.pause()


@contextmanager
def served(root: Path, port: int | None = None) -> Iterator[str]:
    """Give the view's address while a server runs, which is started unless MLFLOW_TRACKING_URI names one."""
    for line in sync(root):
        print(line, file=sys.stderr)
    client, experiment_id = connect(root)
    if not client.search_runs([experiment_id], max_results=1):
        raise UserError("no run yet; `dvc repro` or `dvc exp run` makes the first")
    path, store = "", address(root)
    with suppress(Exception):  # the view is optional; without it, MLflow shows its own page
        path = write_view(client, experiment_id)
    if store.startswith("http"):
        yield store.rstrip("/") + path
        return
    port = _free_port(port)
    with _server(store, port):
        yield f"http://127.0.0.1:{port}{path}"


def _free_port(port: int | None) -> int:
    for candidate in (port,) if port else (PORT, 0):
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", candidate))
            return int(listener.getsockname()[1])
    raise UserError(f"--port: {port} is taken; give another port, or none")


@contextmanager
def _server(store: str, port: int) -> Iterator[None]:
    options = ["--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # One worker, and no processes for jobs: half the memory.
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with TemporaryFile() as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            env=os.environ | settings,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that its child processes can be ended with it
        )
        try:
            _wait(server, port, output)
            yield
        except KeyboardInterrupt:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _wait(server: "subprocess.Popen[bytes]", port: int, output: IO[bytes]) -> None:
    deadline = time.monotonic() + MAX_START
    while time.monotonic() < deadline:
        if server.poll() is not None:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"MLflow's server does not start: {lines[-1] if lines else 'it printed nothing'}")
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return
        time.sleep(0.2)
    raise UserError(f"MLflow's server does not answer on port {port} within {MAX_START:.0f} s")
