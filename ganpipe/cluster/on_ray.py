"""Cells as Ray tasks: Ray places them, assigns GPUs, and starts them again on another node when one dies.

A process of its own owns the tasks (`python -m ganpipe.cluster.on_ray`), so that they outlive the command.
"""

import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

from ganpipe.cluster import board, cell
from ganpipe.cluster.options import Options
from ganpipe.common import files, processes
from ganpipe.common.errors import UserError, without_secrets
from ganpipe.device import visible_gpus

RETRIES = 2  # of a cell whose node or worker died; an error of the experiment is none
OBJECT_STORE = 100_000_000  # bytes; the smallest that Ray takes is enough for a path
PASSED = ("GANPIPE_", "MLFLOW_")  # variables that nodes get from the command, if they do not set them
CONNECT = 5.0  # seconds


def address_of(options: Options) -> str:
    """Return HOST:PORT of the cluster; empty: Ray is started on this machine."""
    found = os.environ.get("RAY_ADDRESS", "")
    return options.where or ("" if found == "auto" else found)


def problems(options: Options, paths: Sequence[str], shared: Path) -> tuple[list[str], int]:
    """Return why nothing can be submitted, a line each, and the GPUs of a cell.

    Each node of a running cluster is asked for `paths`, and whether it sees a file in `shared`.
    """
    if find_spec("ray") is None:
        return ["ray is not installed; `pip install 'ganpipe[cluster]'`"], 0
    address, most = address_of(options), len(visible_gpus())
    lines: list[str] = []
    if address:
        host, _, port = address.rpartition(":")
        if "://" in address or not (host and port.isdigit()):
            return [f"--on ray: found {address}, expected HOST:PORT of the cluster, not of Ray Client"], 0
        try:
            socket.create_connection((host, int(port)), CONNECT).close()
        except OSError as error:
            return [f"--on ray: nothing answers at {address} ({error.strerror or error})"], 0
        with _connected(address) as ray:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            most = max(int(node["Resources"].get("GPU", 0)) for node in nodes)
            lines = list(_ask(ray, nodes, paths, shared))
    gpus = min(most, 1) if options.gpus is None else options.gpus
    if gpus > most:
        lines.append(f"--gpus {gpus}: no node has more than {most} GPUs")
    return lines, gpus


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start Ray on this machine without an address; nothing is sent home."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not address:
        # A password of this run only: Ray would write one to the home folder, which clusters started later
        # would then ask for.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    local = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(**({"address": address} if address else local), log_to_driver=False, logging_level="error")
    except Exception as error:  # of Ray's kinds and of Python's
        remedy = f"`ray start --address={address} --num-cpus=0` makes this machine one of its nodes"
        remedy += "; a cluster with a token also wants RAY_AUTH_MODE=token here"
        line = " ".join(str(error).split())[:200]
        raise UserError(f"--on ray: no connection to {address or 'Ray'} ({line}); {remedy}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _ask(ray: Any, nodes: list[Any], paths: Sequence[str], shared: Path) -> Iterator[str]:
    """Yield what each node of a cluster lacks."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = shared / f".{processes.NODE}-{os.getpid()}"
    token.touch()
    try:
        answers = {}
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(missing)
            answers[node["NodeManagerAddress"]] = task.remote([*paths, str(token)])
        for name, answer in answers.items():
            try:
                for path in ray.get(answer, timeout=60):
                    shown = f"{files.UNFINISHED}={shared}" if path == str(token) else path
                    yield f"node {name} does not see {without_secrets(shown)}; put it where all nodes see it"
            except Exception as error:  # what a worker raises arrives in kinds of Ray's
                line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                yield f"node {name} cannot run ganpipe ({line}); install the same Python, ray and ganpipe"
    finally:
        token.unlink()


def missing(paths: Sequence[str]) -> list[str]:
    """Return the paths that do not exist on this node."""
    return [path for path in paths if not Path(path).exists()]


def submit(folders: Sequence[Path], options: Options, gpus: int, log: Path) -> None:
    """Start the process that owns the cells' tasks, with its output in `log`."""
    plan = {
        "folders": [*map(str, folders)],
        "address": address_of(options),
        "gpus": gpus,
        "cpus": options.cpus,
    }
    command = [sys.executable, "-m", "ganpipe.cluster.on_ray", json.dumps(plan)]
    with open(log, "ab") as output:
        owner = Popen(command, stdin=DEVNULL, stdout=output, stderr=output, start_new_session=True)
    for folder in folders:
        board.write_job(folder, f"ray {processes.NODE} {owner.pid} {processes.start_of(owner.pid)}")


def alive(job: str) -> bool:
    """Return whether the process that owns a cell's task is alive; True on another machine, unknown here."""
    _, node, pid, began = job.split()
    return node != processes.NODE or processes.alive(int(pid), float(began))


def own(plan: dict[str, Any]) -> None:
    """Run cells as Ray tasks until all are over."""
    with _connected(plan["address"]) as ray:
        from ray.exceptions import RayError

        # A worker process runs one cell: nothing of a GPU's memory or of the environment is left to the next.
        needs = {"num_cpus": plan["cpus"], "num_gpus": plan["gpus"], "max_retries": RETRIES, "max_calls": 1}
        task = ray.remote(**needs)(cell.run)
        # As an argument: Ray's own record of a task's environment could be seen by others.
        passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
        waiting = {task.remote(Path(folder), passed): Path(folder) for folder in plan["folders"]}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            folder = waiting.pop(done)
            try:
                ray.get(done)
            except RayError as error:
                line = (str(error).strip().splitlines() or [""])[0]
                board.fail(folder, f"its worker died {RETRIES + 1} times: {line}")


if __name__ == "__main__":
    own(json.loads(sys.argv[1]))
