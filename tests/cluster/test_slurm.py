"""Cells on a real Slurm of two nodes on this machine: Debian's slurm-wlm and munge, as root."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import wait
from toy import git, on_hub, order, toy_project

from ganpipe.cluster import board, on_slurm, watch
from ganpipe.cluster.options import Options

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "scontrol")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthInfo=socket={folder}/munge.socket,cred_expire=20
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.%n.pid
SlurmctldPort=17000
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
MinJobAge=300
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=1 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=1 Gres=gpu:1
PartitionName=short Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
GPUS = "NodeName=n1 Name=gpu File=/dev/null\nNodeName=n2 Name=gpu File=/dev/zero\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start Slurm with two nodes of one CPU and one GPU each, and end it."""
    pytest.importorskip("submitit")
    if os.geteuid() or not all(map(shutil.which, PROGRAMS)):
        pytest.skip("needs root, and Debian's slurm-wlm and munge")
    folder = tmp_path / "slurm"
    folder.mkdir(mode=0o755)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=socket.gethostname()))
    (folder / "gres.conf").write_text(GPUS)
    (folder / "cgroup.conf").write_text("")
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    subprocess.run(["mungekey", "--create", f"--keyfile={folder}/key"], check=True)
    names = {"key-file": "key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    options = [f"--{name}={folder}/{file}" for name, file in (names | {"seed-file": "seed"}).items()]
    commands = [["munged", "--foreground", "--force", *options], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    daemons: list[subprocess.Popen[bytes]] = []
    for command in commands:
        log = open(folder / f"{command[0]}{len(daemons)}.log", "wb")
        daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
        wait(lambda: (folder / "munge.socket").exists(), "munge's socket")
    idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
    wait(lambda: subprocess.run(idle, capture_output=True, text=True).stdout.strip() == "2", "two idle nodes")
    yield
    subprocess.run(["scancel", "--user=root"], check=True)  # what a failure has left
    jobs = ["squeue", "--noheader"]
    wait(lambda: not subprocess.run(jobs, capture_output=True, text=True).stdout, "an empty queue")
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of the toy project; this package is found by Slurm's processes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *sys.path]))
    return toy_project(tmp_path, monkeypatch)


def assert_resumed(folder: Path, checkout: Path) -> None:
    """Check that a cell was interrupted with a checkpoint, resumed once, and leaves no clone."""
    logs = [board.read_tail(folder / f"{number}.log") for number in (1, 2)]
    assert "from step 0" in logs[0] and "stopped with a checkpoint" in logs[0]
    assert "from step 0" not in logs[1] and not (folder / "3.log").exists()
    assert git(checkout, "ls-remote", "origin", "refs/exps/*").count(folder.name) == 1
    wait(lambda: not list((checkout.parent / "scratch").glob("*@*")), "the end of all clones")


@pytest.mark.long
def test_slurm_places_and_requeues_cells(checkout: Path, tmp_path: Path, slurm: None) -> None:
    """A failure means that a requeued cell trains anew or twice, or that it counts as failed meanwhile."""
    assert on_slurm.problems(Options(on="slurm=short")) == []
    assert on_slurm.problems(Options(on="slurm=long")) == ["--on slurm=long: no such partition; known: short"]
    lengths = {"a": 5, "b": 200, "c": 5}
    folders = [order(checkout, f"grid-{x}-s0", f"steps={n}", "seed=0") for x, n in lengths.items()]
    on_slurm.submit(folders, Options(on="slurm=short"), tmp_path / "shared/slurm")
    assert {watch.state_of(folder).state for folder in folders} <= {"waiting", "cloning", "running"}
    requeued = folders[1]
    wait(lambda: (requeued / "unfinished/step").exists(), "the first step")
    subprocess.run(["scontrol", "requeue", board.job_of(requeued).split()[1]], check=True)
    seen = set()

    def over() -> bool:
        seen.add(watch.state_of(requeued).state)
        return {watch.state_of(folder).state for folder in folders} == {"finished"}

    wait(over, "the end of all cells", 300)
    assert "waiting" in seen and not seen & {"failed", "ended", "lost"}
    assert len(on_hub(checkout)) == 3
    assert_resumed(requeued, checkout)


@pytest.mark.long
def test_a_cell_longer_than_its_time_limit_goes_on(checkout: Path, tmp_path: Path, slurm: None) -> None:
    """A failure means that a training of two days cannot run where Slurm allows one day."""
    folder = order(checkout, "grid-a-s0", "steps=5", "seed=0")
    hold = folder / "unfinished/hold"
    hold.parent.mkdir()
    hold.touch()
    # Three minutes, which submitit interrupts 90 seconds before their end.
    on_slurm.submit([folder], Options(on="slurm", hours=3 / 60, gpus=0), tmp_path / "shared/slurm")
    wait(lambda: "stopped with" in board.read_tail(folder / "1.log"), "the time limit", 240)
    hold.unlink()
    wait(lambda: watch.state_of(folder).state == "finished", "the end of the cell", 240)
    assert_resumed(folder, checkout)
