"""The doctor: finds what really killed processes left, mends it, and leaves alone what lives."""

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

from ganpipe.commands import doctor
from ganpipe.common.errors import UserError

TRAINER = """
import os, sys, time
from pathlib import Path
from ganpipe.train import resume as unfinished
main = Path(os.environ["DVC_ROOT"])
with unfinished.held(unfinished.folder_for(Path(), {}), Path()), unfinished.asked_to_stop() as asked:
    (main / "began.tmp").write_text(str(os.getpid()))
    (main / "began.tmp").rename(main / "began")
    while not asked:
        time.sleep(0.02)
    (main / "asked").write_text(str(asked))
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
    """Run git with a name of its own."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
    return subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A DVC repository whose one stage holds a training as the real one does, and never ends by itself."""
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
    """Run dvc until its stage trains; give both processes; nothing outlives it."""
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
        for each in (process, trainer):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def until(done: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.02)


def ended(process: psutil.Process) -> bool:
    """Say whether a process runs no more."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def kill(process: subprocess.Popen[bytes]) -> None:
    """Do kill -9, and take the zombie away."""
    process.kill()
    process.wait()


@pytest.mark.parametrize("rest", ["", "; true"])
def test_a_trainer_ends_with_its_dvc(checkout: Path, rest: str) -> None:
    """An orphan would train on beside its successor, behind a shell too, and its result be thrown away."""
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
    """A user would find a training that he cannot start again, and commit to no branch."""
    monkeypatch.chdir(checkout)
    with dvc(checkout, "exp", "run", "-S", "seed=1") as (process, trainer):
        assert doctor.doctor(Path(), fix=True) == 0, "what lives is left alone"
        assert trainer.is_running() and process.poll() is None
        trainer.suspend()  # one that cannot notice that its dvc is gone
        kill(process)
        capsys.readouterr()
        assert doctor.doctor(Path(), fix=False) == 3
        said = capsys.readouterr().out
        assert f"process {trainer.pid} trains on in {checkout}, though the dvc that ran it is gone" in said
        assert f"names dead processes: {process.pid}\n" in said and "HEAD is detached from main" in said
        assert not git(checkout, "branch", "--show-current") and not ended(trainer)
        assert doctor.doctor(Path(), fix=True) == 0
        assert ended(trainer) and (checkout / "asked").exists()
    assert git(checkout, "branch", "--show-current") == "main"
    assert (checkout / "params.yaml").read_text() == "seed: 1\n"
    capsys.readouterr()
    assert doctor.doctor(Path(), fix=False) == 0
    assert capsys.readouterr().out == "nothing was left by a kill\n"
    with dvc(checkout, "repro"):
        assert "WARNING: Process" not in (checkout.parent / "log").read_text()


def test_a_killed_experiment_in_a_copy(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Copies of the checkout would pile up, each with a trainer that nobody waits for."""
    copies = checkout / ".dvc/tmp/exps/standalone"
    with dvc(checkout, "exp", "run", "--temp", "-S", "seed=2") as (process, trainer):
        assert doctor.doctor(checkout, fix=True) == 0 and len(list(copies.glob("tmp*"))) == 1
        trainer.suspend()
        kill(process)
        capsys.readouterr()
        assert doctor.doctor(checkout, fix=False) == 2
        assert f"process {trainer.pid} trains on in {copies}/tmp" in capsys.readouterr().out
        assert doctor.doctor(checkout, fix=True) == 0
        assert "is a copy that a killed experiment left" in capsys.readouterr().out
        assert ended(trainer) and not list(copies.glob("tmp*"))


LOCK = """
import os, sys
from dvc.lock import make_lock
with make_lock(sys.argv[2], os.path.dirname(sys.argv[2]), hardlink_lock=True):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_that_is_a_file(checkout: Path) -> None:
    """With core.hardlink_lock a killed dvc blocks every later one for a year."""
    with open(checkout / ".dvc/config", "a") as config:
        config.write("    hardlink_lock = true\n")
    path = checkout / ".dvc/tmp/lock"
    path.parent.mkdir()
    command = [sys.executable, "-c", LOCK, "dvc", str(path)]
    with subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"locked\n"
        assert doctor.doctor(checkout, fix=True) == 0 and path.exists()
        process.kill()
    for _ in range(2):  # of a killed process, then an empty one
        assert doctor.doctor(checkout, fix=False) == 1 and path.exists()
        assert doctor.doctor(checkout, fix=True) == 0 and not path.exists()
        path.touch()


def test_a_list_of_readers_that_is_cut_off(checkout: Path) -> None:
    """Each dvc command would end with "JSON structure is corrupted"."""
    path = checkout / ".dvc/tmp/rwlock"
    path.parent.mkdir()
    with make_lock(str(path.with_name("rwlock.lock"))):
        path.touch()
        assert doctor.doctor(checkout, fix=True) == 0 and path.exists(), "a dvc is just writing it"
    for content in ("", '{"write": {"/x": {"pid": 12', '["write"]'):
        path.write_text(content)
        assert doctor.doctor(checkout, fix=False) == 1 and path.exists()
        assert doctor.doctor(checkout, fix=True) == 0 and not path.exists()


def test_only_entries_of_the_dead_are_taken_out(checkout: Path) -> None:
    """A living dvc would lose its claim; one whose number went to another process would keep it for ever."""
    path = checkout / ".dvc/tmp/rwlock"
    path.parent.mkdir()
    with subprocess.Popen(["sleep", "60"]) as gone:
        gone.kill()
    dead, living = {"pid": gone.pid, "cmd": "dvc"}, {"pid": os.getpid(), "cmd": "dvc"}
    entries = {"write": {"/a": dead, "/b": living}, "read": {"/c": [dead, living], "/d": [dead]}}
    path.write_text(json.dumps(entries))
    assert doctor.doctor(checkout, fix=True) == 0
    assert json.loads(path.read_text()) == {"write": {"/b": living}, "read": {"/c": [living]}}
    os.utime(path, (0, 0))  # written before the process with that number began
    assert doctor.doctor(checkout, fix=True) == 0
    assert json.loads(path.read_text()) == {"write": {}, "read": {}}


def test_a_chosen_detached_head_is_left_alone(checkout: Path) -> None:
    """A person who looks at an old commit did not ask to leave it."""
    git(checkout, "switch", "-q", "--detach")
    assert doctor.doctor(checkout, fix=True) == 0
    assert not git(checkout, "branch", "--show-current")


def test_no_checkout(tmp_path: Path) -> None:
    """In the wrong folder it would find nothing and say that all is well."""
    with pytest.raises(UserError, match=r"has no \.dvc"):
        doctor.doctor(tmp_path, fix=False)
