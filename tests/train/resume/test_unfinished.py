"""The folders of unfinished trainings, their locks and the signals that stop a training."""

import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from ganpipe.common.errors import UserError
from ganpipe.train.resume.unfinished import folder_for, locked, remove
from ganpipe.train.signals import ECHO, stop_signals

HOLD = """
import sys
from pathlib import Path
from ganpipe.train.resume.unfinished import locked
with locked(Path(sys.argv[1]), Path(sys.argv[2])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_folder_is_the_main_checkout_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfinished training would be lost with the copy of the checkout that a queued experiment runs in."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    alone = folder_for(tmp_path / "a", {"x": 1})
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "a"))
    assert folder_for(tmp_path / "copy", {"x": 1}) == alone
    assert folder_for(tmp_path / "copy", {"x": 2}) != alone


def test_two_processes_never_lock_one_training_or_one_checkout(tmp_path: Path) -> None:
    """An orphan and its successor would overwrite each other's files in stages/train."""
    (here := tmp_path / "here").mkdir()
    (copy := tmp_path / "copy").mkdir()
    folder, other = tmp_path / "key", tmp_path / "other"
    command = [sys.executable, "-c", HOLD, str(folder), str(here)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == "locked\n"
        for mine, checkout in ((folder, here), (other, here), (folder, copy)):
            message = f"process {process.pid} is already training in {here}; .*kill {process.pid}"
            with pytest.raises(UserError, match=message), locked(mine, checkout):
                pass
        with locked(other, copy):  # as the queue's experiments do
            pass
        process.kill()
    with locked(folder, here):
        assert folder.is_dir()


STAGE = """
import sys, time
from pathlib import Path
from ganpipe.train.signals import orphaned, stop_signals
from ganpipe.train.resume.unfinished import locked
with locked(Path("key"), Path()), stop_signals() as received:
    Path("began").touch()
    deadline = time.monotonic() + 60
    while not received and time.monotonic() < deadline:
        time.sleep(0.01)
    Path("stopped").write_text(f"{received[0].name} {orphaned()}")
"""
DVC = """
import os, subprocess, sys
subprocess.run(sys.argv[1:], env=os.environ | {"DVC_STAGE": "train"})
"""


@pytest.mark.parametrize("shell", [False, True])
def test_a_stage_stops_when_dvc_is_gone(tmp_path: Path, shell: bool) -> None:
    """It would train to its end and then remove the state that the next run should resume from."""
    command = [sys.executable, "-c", STAGE]
    if shell:  # one that stays between dvc and the stage, as some do
        command = ["sh", "-c", f"{shlex.join(command)}; : python -m ganpipe train"]
    with subprocess.Popen([sys.executable, "-c", DVC, *command], cwd=tmp_path) as dvc:
        wait_for(tmp_path / "began")
        assert not (tmp_path / "stopped").exists()
        dvc.kill()
    wait_for(tmp_path / "stopped")
    assert (tmp_path / "stopped").read_text() == "SIGTERM True"
    with locked(tmp_path / "key", tmp_path):  # waits for the other to end
        pass


def test_a_process_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    """A training would be refused because of one that has removed its note and is about to unlock."""
    (tmp_path / ".ganpipe").mkdir()
    lock = FileLock(tmp_path / ".ganpipe" / "train.lock", thread_local=False)
    lock.acquire()
    ending = threading.Timer(0.2, lock.release)
    ending.start()
    with locked(tmp_path / "key", tmp_path):
        pass
    ending.join()


def wait_for(path: Path) -> None:
    """Wait until a file exists."""
    deadline = time.monotonic() + 30
    while not path.exists() or not (path.name == "began" or path.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_echo_of_a_signal_is_ignored() -> None:
    """A second SIGTERM, from dvc besides the system's, would kill the training before its checkpoint."""
    passed_on: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: passed_on.append(signum))
    try:
        with stop_signals() as received:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGTERM] and not passed_on
            time.sleep(ECHO)
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGTERM] and passed_on == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert len(passed_on) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_remove(tmp_path: Path) -> None:
    """A new training would resume from the leftovers of another one."""
    folder = tmp_path / "key"
    folder.mkdir()
    (folder / "x").touch()
    remove(folder)
    remove(folder)
    assert list(tmp_path.iterdir()) == []
