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
AuthInfo=socket={folder}/munge.socket
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
KillWait=20
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
    jobs = ["squeue", "--noheader"]
    wait(lambda: not subprocess.run(jobs, capture_output=True, text=True).stdout, "an empty queue")
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait()


@pytest.mark.long
def test_slurm_places_and_requeues_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: None
) -> None:
    """A failure means that a requeued cell trains anew or twice."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *sys.path]))
    checkout = toy_project(tmp_path, monkeypatch)
    assert on_slurm.problems(Options(on="slurm=short")) == []
    assert on_slurm.problems(Options(on="slurm=long")) == ["--on slurm=long: no such partition; known: short"]
    lengths = {"a": 5, "b": 200, "c": 5}
    folders = [order(checkout, f"grid-{x}-s0", f"steps={n}", "seed=0") for x, n in lengths.items()]
    on_slurm.submit(folders, Options(on="slurm=short"), tmp_path / "shared/slurm")
    assert {watch.state_of(folder).state for folder in folders} <= {"waiting", "cloning", "running"}
    requeued = folders[1]
    wait(lambda: (requeued / "unfinished/step").exists(), "the first step")
    subprocess.run(["scontrol", "requeue", board.job_of(requeued).split()[1]], check=True)
    # Slurm waits for two minutes before it starts a requeued job.
    wait(lambda: {watch.state_of(f).state for f in folders} == {"finished"}, "the end of all cells", 300)
    assert [(folder / "2.log").exists() for folder in folders] == [False, True, False]
    assert "from step 0" not in board.read_tail(requeued / "2.log")
    assert len(on_hub(checkout)) == 3 and not list((tmp_path / "scratch").glob("*@*"))
    assert git(checkout, "ls-remote", "origin", "refs/exps/*").count("grid-") == 3


@pytest.mark.long
def test_a_cell_longer_than_its_time_limit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: None
) -> None:
    """A failure means that a training of two days cannot run where Slurm allows one day."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *sys.path]))
    checkout = toy_project(tmp_path, monkeypatch)
    folder = order(checkout, "grid-a-s0", "steps=300", "seed=0")
    # Two minutes, which submitit interrupts 90 seconds before their end.
    on_slurm.submit([folder], Options(on="slurm", hours=2 / 60, gpus=0), tmp_path / "shared/slurm")
    wait(lambda: watch.state_of(folder).state == "finished", "the end of the cell", 400)
    logs = [board.read_tail(folder / f"{number}.log") for number in (1, 2)]
    assert "from step 0" in logs[0] and "from step 0" not in logs[1]
    assert list(on_hub(checkout)) == ["grid-a-s0"]
