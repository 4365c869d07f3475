"""`ganpipe doctor` on checkouts whose dvc, trainer or lock holder was really killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from dvc.lock import make_lock

from ganpipe.commands.doctor import doctor
from ganpipe.common.errors import UserError

TRAINER = """
import os, sys, time
from pathlib import Path
from ganpipe.train.signals import stop_signals
from ganpipe.train.resume.unfinished import folder_for, locked
main = Path(os.environ["DVC_ROOT"])
with locked(folder_for(Path(), {}), Path()), stop_signals() as received:
    (main / "began.tmp").write_text(str(os.getpid()))
    (main / "began.tmp").rename(main / "began")
    while not received:
        time.sleep(0.02)
    (main / "asked").write_text(str(received))
sys.exit(143)
"""
PIPELINE = """
stages:
  train:
    cmd: python trainer.py
    deps: [trainer.py]
    params: [seed]
    outs: [model]
"""


def git(checkout: Path, *words: str) -> str:
    """Run git with a user name, and return its output."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
    return subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A DVC repository whose one stage holds a training like the train stage, until it is told to stop."""
    (tmp_path / "ganpipe").symlink_to(ROOT / "ganpipe")
    (tmp_path / ".dvc").mkdir()
    for name, text in {
        "trainer.py": TRAINER,
        "dvc.yaml": PIPELINE,
        "params.yaml": "seed: 0\n",
        ".dvc/config": "[core]\n    analytics = false\n",
        ".dvc/.gitignore": "/tmp\n/cache\n/config.local\n",
        ".gitignore": "/.ganpipe/\n/model\n/began\n/asked\n__pycache__/\n",
    }.items():
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "base")
    return tmp_path


@contextmanager
def dvc(checkout: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """Run dvc until its stage trains, and return both processes; neither outlives the context."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    (checkout / "began").unlink(missing_ok=True)
    with open(checkout.parent / "log", "wb") as log:
        command = [sys.executable, "-m", "dvc", *words]
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log)
    until((checkout / "began").exists, process)
    trainer = psutil.Process(int((checkout / "began").read_text()))
    try:
        yield process, trainer
    finally:
        for running in (process, trainer):
            with suppress(psutil.NoSuchProcess):
                running.kill()
        process.wait()


def until(done: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until a condition holds; fail after a minute, or when the process exits first."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.02)


def ended(process: psutil.Process) -> bool:
    """Return whether a process has exited."""
    with suppress(psutil.NoSuchProcess):  # it may exit between two questions
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with SIGKILL and reap it."""
    process.kill()
    process.wait()


@pytest.mark.parametrize("rest", ["", "; true"])
def test_a_trainer_exits_when_its_dvc_is_killed(checkout: Path, rest: str) -> None:
    """A failure means that an orphan trains beside its successor, and its result is discarded."""
    (checkout / "dvc.yaml").write_text(
        PIPELINE.replace("trainer.py\n    deps", f"trainer.py{rest}\n    deps")
    )
    with dvc(checkout, "repro") as (process, trainer):
        kill(process)
        until(lambda: ended(trainer))
        assert (checkout / "asked").read_text() == f"[{signal.SIGTERM!r}]"


def test_a_killed_experiment_in_the_workspace(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means a training that cannot be started again, or commits that are on no branch."""
    monkeypatch.chdir(checkout)
    with dvc(checkout, "exp", "run", "-S", "seed=1") as (process, trainer):
        assert doctor(Path(), fix=True) == 0, "live processes must be left alone"
        assert trainer.is_running() and process.poll() is None
        trainer.suspend()  # so that it does not notice that its dvc is gone
        kill(process)
        capsys.readouterr()
        assert doctor(Path(), fix=False) == 3
        printed = capsys.readouterr().out
        assert f"process {trainer.pid} trains in {checkout}, although the dvc that ran it is gone" in printed
        assert f"names dead processes: {process.pid}\n" in printed and "HEAD is detached from main" in printed
        assert not git(checkout, "branch", "--show-current") and not ended(trainer)
        assert doctor(Path(), fix=True) == 0
        assert ended(trainer) and (checkout / "asked").exists()
    assert git(checkout, "branch", "--show-current") == "main"
    assert (checkout / "params.yaml").read_text() == "seed: 1\n"
    capsys.readouterr()
    assert doctor(Path(), fix=False) == 0
    assert capsys.readouterr().out == "killed processes left nothing behind\n"
    with dvc(checkout, "repro"):
        assert "WARNING: Process" not in (checkout.parent / "log").read_text()


def test_a_killed_experiment_in_a_copy(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure means that copies of the checkout pile up, each with an orphaned trainer."""
    copies = checkout / ".dvc/tmp/exps/standalone"
    with dvc(checkout, "exp", "run", "--temp", "-S", "seed=2") as (process, trainer):
        assert doctor(checkout, fix=True) == 0 and len(list(copies.glob("tmp*"))) == 1
        trainer.suspend()
        kill(process)
        capsys.readouterr()
        assert doctor(checkout, fix=False) == 2
        assert f"process {trainer.pid} trains in {copies}/tmp" in capsys.readouterr().out
        assert doctor(checkout, fix=True) == 0
        assert "is the copy of a killed experiment" in capsys.readouterr().out
        assert ended(trainer) and not list(copies.glob("tmp*"))


LOCK = """
import os, sys
from dvc.lock import make_lock
with make_lock(sys.argv[2], os.path.dirname(sys.argv[2]), hardlink_lock=True):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_that_is_a_file(checkout: Path) -> None:
    """A failure means that, with core.hardlink_lock, a killed dvc blocks every later one for a year."""
    with open(checkout / ".dvc/config", "a") as config:
        config.write("    hardlink_lock = true\n")
    path = checkout / ".dvc/tmp/lock"
    path.parent.mkdir()
    command = [sys.executable, "-c", LOCK, "dvc", str(path)]
    with subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"locked\n"
        assert doctor(checkout, fix=True) == 0 and path.exists()
        process.kill()
    for _ in range(2):  # the lock of a killed process, then an empty file
        assert doctor(checkout, fix=False) == 1 and path.exists()
        assert doctor(checkout, fix=True) == 0 and not path.exists()
        path.touch()


def test_a_truncated_list_of_readers(checkout: Path) -> None:
    """A failure means that each dvc command ends with "JSON structure is corrupted"."""
    path = checkout / ".dvc/tmp/rwlock"
    path.parent.mkdir()
    with make_lock(str(path.with_name("rwlock.lock"))):
        path.touch()
        assert doctor(checkout, fix=True) == 0 and path.exists(), "a dvc may be writing it"
    for content in ("", '{"write": {"/x": {"pid": 12', '["write"]'):
        path.write_text(content)
        assert doctor(checkout, fix=False) == 1 and path.exists()
        assert doctor(checkout, fix=True) == 0 and not path.exists()


def test_only_entries_of_dead_processes_are_removed(checkout: Path) -> None:
    """A failure means that a live dvc loses its lock, or that a reused process id keeps one for ever."""
    path = checkout / ".dvc/tmp/rwlock"
    path.parent.mkdir()
    with subprocess.Popen(["sleep", "60"]) as killed:
        killed.kill()
    dead, living = {"pid": killed.pid, "cmd": "dvc"}, {"pid": os.getpid(), "cmd": "dvc"}
    entries = {"write": {"/a": dead, "/b": living}, "read": {"/c": [dead, living], "/d": [dead]}}
    path.write_text(json.dumps(entries))
    assert doctor(checkout, fix=True) == 0
    assert json.loads(path.read_text()) == {"write": {"/b": living}, "read": {"/c": [living]}}
    os.utime(path, (0, 0))  # written before the process with that id started
    assert doctor(checkout, fix=True) == 0
    assert json.loads(path.read_text()) == {"write": {}, "read": {}}


def test_a_head_detached_by_the_user_is_left_alone(checkout: Path) -> None:
    """A failure means that a user who looks at an old commit is moved away from it."""
    git(checkout, "switch", "-q", "--detach")
    assert doctor(checkout, fix=True) == 0
    assert not git(checkout, "branch", "--show-current")


def test_a_folder_without_dvc_gets_one_sentence(tmp_path: Path) -> None:
    """A failure means that in the wrong folder nothing is found and all seems well."""
    with pytest.raises(UserError, match=r"has no \.dvc"):
        doctor(tmp_path, fix=False)
