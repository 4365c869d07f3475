"""The launcher of ranks, with processes that only wait instead of training."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from ganpipe.common.errors import UserError
from ganpipe.train.devices import launch

# `python -m ganpipe` of this checkout does what its arguments say; the rest of the package is the real one.
STAND_IN = """
import os, signal, sys, time
from pathlib import Path
from ganpipe.train.devices import launch
launch.exit_with_launcher()
rank, (what, victim) = os.environ["RANK"], sys.argv[1:]
signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
Path(rank).write_text(f"{os.getpid()} {os.environ['WORLD_SIZE']} {os.environ['MASTER_PORT']}")
while len(list(Path().glob("[0-9]"))) < 3:
    time.sleep(0.01)
if rank == victim and what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if rank == victim and what == "failing":
    sys.exit(3)
if what != "fine":
    time.sleep(60)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose ganpipe has STAND_IN as its command line; no rank may outlive a test."""
    (tmp_path / "ganpipe").mkdir()
    real = ROOT / "ganpipe"
    (tmp_path / "ganpipe/__init__.py").write_text(f"__path__.append({str(real)!r})\n")
    (tmp_path / "ganpipe/__main__.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "GRACE", 0.5)
    yield tmp_path
    assert not alive(tmp_path)


def alive(folder: Path) -> list[int]:
    """Return the ranks that still run."""
    pids = [int(path.read_text().split()[0]) for path in folder.glob("[0-9]")]
    return [pid for pid in pids if psutil.pid_exists(pid)]


def test_all_ranks_run_and_end(checkout: Path) -> None:
    """Ranks with different ports or counts would wait for each other forever."""
    assert launch.launch(3, ["fine", "-"]) == 0
    written = [(checkout / str(rank)).read_text().split()[1:] for rank in range(3)]
    assert written[0] == written[1] == written[2] and written[0][0] == "3"


def test_a_killed_rank_ends_the_job(checkout: Path) -> None:
    """A job that waits for a dead rank holds its devices all night."""
    began = time.monotonic()
    with pytest.raises(UserError, match="rank 1 of 3 was killed by SIGKILL.* resume"):
        launch.launch(3, ["killed", "1"])
    assert time.monotonic() - began < 30


def test_a_failure_keeps_its_exit_code(checkout: Path) -> None:
    """With code 0 DVC would take the stage as done; a user's error has a code of its own."""
    assert launch.launch(3, ["failing", "0"]) == 3  # the others do not end and are killed


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_its_launcher(checkout: Path, signum: signal.Signals) -> None:
    """An orphaned rank would go on writing beside its successor."""
    program = "from ganpipe.train.devices.launch import launch; raise SystemExit(launch(3, ['wait', '-']))"
    launcher = subprocess.Popen([sys.executable, "-c", program], cwd=checkout)
    while len(list(checkout.glob("[0-9]"))) < 3:
        time.sleep(0.02)
    time.sleep(0.1)  # the last one may not have written its number yet
    launcher.send_signal(signum)
    code = launcher.wait(30)
    assert code == (128 + signal.SIGTERM if signum == signal.SIGTERM else -signal.SIGKILL)
    for _ in range(100):
        if not alive(checkout):
            break
        time.sleep(0.05)
