"""The folders of unfinished training."""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ganpipe.common.errors import UserError
from ganpipe.train import resume as unfinished

HOLD = """
import sys
from pathlib import Path
from ganpipe.train import resume as unfinished
with unfinished.held(Path(sys.argv[1]), Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_folder_is_the_main_checkout_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queued experiment's copy of the checkout is deleted, and with it all that could be resumed."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    alone = unfinished.folder_for(tmp_path / "a", {"x": 1})
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "a"))
    assert unfinished.folder_for(tmp_path / "copy", {"x": 1}) == alone
    assert unfinished.folder_for(tmp_path / "copy", {"x": 2}) != alone


def test_two_processes_never_hold_one_training_or_one_checkout(tmp_path: Path) -> None:
    """An orphan and its successor, of other params perhaps, would write over each other in stages/train."""
    (here := tmp_path / "here").mkdir()
    (copy := tmp_path / "copy").mkdir()
    folder, other = tmp_path / "key", tmp_path / "other"
    command = [sys.executable, "-c", HOLD, str(folder), str(here)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        for mine, checkout in ((folder, here), (other, here), (folder, copy)):
            said = f"process {process.pid} is training already, in {here}; .*kill {process.pid}"
            with pytest.raises(UserError, match=said), unfinished.held(mine, checkout):
                pass
        with unfinished.held(other, copy):  # as the queue's experiments do
            pass
        process.kill()
    with unfinished.held(folder, here):
        assert folder.is_dir()


STAGE = """
import sys, time
from pathlib import Path
from ganpipe.train import resume as unfinished
with unfinished.held(Path("key"), Path()), unfinished.asked_to_stop() as asked:
    Path("began").touch()
    deadline = time.monotonic() + 60
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    Path("asked").write_text(f"{asked[0].name} {unfinished.orphaned()}")
"""
DVC = """
import os, subprocess, sys
subprocess.run(sys.argv[1:], env=os.environ | {"DVC_STAGE": "train"})
"""


@pytest.mark.parametrize("shell", [False, True])
def test_a_stage_stops_when_dvc_is_gone(tmp_path: Path, shell: bool) -> None:
    """It would train to its end, and then remove what the next start should have gone on from."""
    command = [sys.executable, "-c", STAGE]
    if shell:  # one that stays between dvc and the stage, as some do
        command = ["sh", "-c", f"{shlex.join(command)}; : python -m ganpipe train"]
    with subprocess.Popen([sys.executable, "-c", DVC, *command], cwd=tmp_path) as dvc:
        wait_for(tmp_path / "began")
        assert not (tmp_path / "asked").exists()
        dvc.kill()
    wait_for(tmp_path / "asked")
    assert (tmp_path / "asked").read_text() == "SIGTERM True"
    with unfinished.held(tmp_path / "key", tmp_path):  # waits for the other to end
        pass


def wait_for(path: Path) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + 30
    while not path.exists() or not (path.name == "began" or path.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_echo_of_a_signal_does_no_harm() -> None:
    """A group gets SIGTERM from its dvc and from the system: the second would cost the checkpoint."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: came.append(signum))
    try:
        with unfinished.asked_to_stop() as asked:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert asked == [signal.SIGTERM] and not came
            time.sleep(unfinished.SAME)
            signal.raise_signal(signal.SIGTERM)
            assert asked == [signal.SIGTERM] and came == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert len(came) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_remove(tmp_path: Path) -> None:
    """A folder left over would be resumed as if it were the new training."""
    folder = tmp_path / "key"
    folder.mkdir()
    (folder / "x").touch()
    unfinished.remove(folder)
    unfinished.remove(folder)
    assert list(tmp_path.iterdir()) == []
