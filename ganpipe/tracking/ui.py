"""MLflow's server on the loopback interface, with all runs up to date, opened at the prepared view."""

import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from typing import IO

import psutil

from ganpipe.common.errors import UserError, without_secrets
from ganpipe.tracking.store import address, connect
from ganpipe.tracking.sync import sync
from ganpipe.tracking.view import write_view

PORT = 5000  # MLflow's default
SERVED = "GANPIPE_SERVED"  # environment variable of a server: the checkout whose runs it shows
MAX_START = 180.0  # seconds that a server may take to answer


def ui(root: Path = Path(), port: int | None = None) -> None:
    """Sync MLflow, start its server on the loopback interface, print the view's address, wait for Ctrl-C.

    The default port is 5000, or a free one if 5000 is taken.

    Raises UserError: there is no run yet, the port is taken, or the server does not start or ends by itself.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, and ends the server
    with served(root, port) as (view_address, server):
        print(view_address, flush=True)
        if server:
            print("Ctrl-C stops the server.", file=sys.stderr)
            with suppress(KeyboardInterrupt):
                server.wait()
                raise UserError("MLflow's server has ended, although nothing here stopped it; start it again")


@contextmanager
def served(root: Path, port: int | None = None) -> Iterator[tuple[str, Popen[bytes] | None]]:
    """Give the view's address while a server runs, which is started unless MLFLOW_TRACKING_URI names one."""
    for line in sync(root):
        print(line, file=sys.stderr)
    client, experiment_id = connect(root)
    if not client.search_runs([experiment_id], max_results=1):
        raise UserError("no run yet; `dvc repro` or `dvc exp run` makes the first")
    path, store = "", address(root)
    with suppress(Exception):  # such as a view too long for a tag: MLflow then shows its own page
        path = write_view(client, experiment_id)
    if store.startswith("http"):
        yield without_secrets(store.rstrip("/")).replace("***@", "") + path, None
        return
    port = _free_port(port)
    with _server(root, store, port) as server:
        yield f"http://127.0.0.1:{port}{path}", server


def _free_port(port: int | None) -> int:
    for candidate in (port,) if port else (PORT, 0):
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", candidate))
            return int(listener.getsockname()[1])
    raise UserError(f"--port: {port} is taken; give another port, or none")


@contextmanager
def _server(root: Path, store: str, port: int) -> Iterator[Popen[bytes]]:
    """Run MLflow's server under a guard, so that it ends with this process, however that ends."""
    # One worker, and no processes for jobs: half the memory. In the environment, `ps` shows no password.
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": store}
    environment = os.environ | settings | {SERVED: str(root.resolve())}
    guard = [sys.executable, "-m", "ganpipe.tracking.guard", sys.executable, "-m"]
    command = [*guard, "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with TemporaryFile() as log:
        server = Popen(command, env=environment, stdin=PIPE, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(server, port, log)
            yield server
        finally:
            with suppress(OSError):  # of a guard that was killed; then its session goes on without it
                if server.poll() is None:
                    server.communicate()
                else:
                    os.killpg(server.pid, signal.SIGTERM)


def left_servers(root: Path) -> dict[int, list[int]]:
    """Return session → processes of a checkout's servers whose `ganpipe ui` and guard were both killed."""
    left: dict[int, list[int]] = {}
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get(SERVED) == str(root.resolve()):
            with suppress(ProcessLookupError):
                left.setdefault(os.getsid(process.pid), []).append(process.pid)
    return {session: pids for session, pids in left.items() if not psutil.pid_exists(session)}


def _wait(server: Popen[bytes], port: int, output: IO[bytes]) -> None:
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
