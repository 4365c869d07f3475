"""Workers: a task that kills, hangs or fills its process is lost alone, and the others come in order."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from tasks import work

from ganpipe.common.errors import UserError
from ganpipe.preprocess.workers import AHEAD, Limits, Lost, in_order

LIMITS = Limits(seconds=0.5, memory=256 << 20)
TIME, MEMORY = "takes more than 0.5 s to read", "takes more than 256 MB of memory to read"


@pytest.mark.parametrize("workers", [1, 3])
def test_each_kind_of_loss_costs_one_task(workers: int) -> None:
    """One bad picture would end the stage, hang it, or take its neighbours out of the training set."""
    bad = {7: "crash", 8: "exit 3", 20: "fill", 90: "spin", 91: "fill"}
    tasks = [bad.get(i, f"good {i}") for i in range(100)]
    results = list(in_order(work, iter(tasks), workers, LIMITS, chunk=8))
    expected: list[str | Lost] = list(tasks)
    expected[7], expected[8] = Lost("crashes its reader (SIGSEGV)"), Lost("crashes its reader (exit code 3)")
    expected[20] = expected[91] = Lost(MEMORY)
    expected[90] = Lost(TIME)
    assert results == expected


def test_a_lifted_time_limit_ends_with_its_task() -> None:
    """A picture would be rejected because the disk is slow, or the pictures after it could hang for ever."""
    tasks = ["good", "slow 0.7", "spin", "good"]
    assert list(in_order(work, tasks, 1, LIMITS)) == ["good", "slow 0.7", Lost(TIME), "good"]


def test_a_stopped_worker_is_noticed() -> None:
    """Its own alarm cannot end it: the stage would wait for ever."""
    results = list(in_order(work, ["a", "stop", "b"], 1, Limits(0.3, 256 << 20)))
    assert results == ["a", Lost("takes more than 0.3 s to read"), "b"]


def test_a_worker_that_is_killed_from_outside_costs_no_task(tmp_path: Path) -> None:
    """The kernel ends the largest process when memory is short: a good picture would be left out."""
    tasks = ["good", "good", "once a", "good"]
    assert list(in_order(partial(work, marks=tmp_path), tasks, 2, LIMITS, chunk=1)) == tasks


def test_large_answers_and_slow_readers(capfd: pytest.CaptureFixture[str]) -> None:
    """A pipe that is full while the parent is busy would block both, or look like a hang."""
    for result in in_order(work, ["large", "print"] * 20, 2, Limits(0.2, 256 << 20), chunk=4):
        assert result in ("x" * (1 << 20), "print")
        time.sleep(0.02)
    assert "noise" not in capfd.readouterr().err


def test_tasks_are_not_read_far_ahead() -> None:
    """All tasks would be in memory before the first one is done."""
    read: list[int] = []

    def tasks() -> Iterator[str]:
        for i in range(400):
            read.append(i)
            yield str(i)

    for i, _ in enumerate(in_order(work, tasks(), 2, LIMITS, chunk=4)):
        assert len(read) <= i + AHEAD * 2 * 4


def test_an_exception_ends_the_work_and_all_workers() -> None:
    """A damaged archive must reach the user as an error, and no process may stay behind."""
    with pytest.raises(UserError, match="mend it"):
        list(in_order(work, ["a", "raise mend it", "spin"], 2, LIMITS, chunk=1))
    for result in in_order(work, ["a", "spin"], 2, LIMITS, chunk=1):
        assert result == "a"
        break
    assert not multiprocessing.active_children()


def test_workers_that_cannot_start_are_the_users_to_mend() -> None:
    """The stage would start processes for ever, or end with a traceback."""
    with pytest.raises(UserError, match="cannot start.*GANPIPE_WORKERS=1"):
        list(in_order(work, ["a"], 1, Limits(1.0, 1 << 70)))
    assert not multiprocessing.active_children()


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """Orphans would decode for ever after `kill -9`."""
    script = tmp_path / "parent.py"
    script.write_text("""
from ganpipe.preprocess.workers import Limits, in_order
from tasks import work
if __name__ == "__main__":
    for result in in_order(work, ["a", "spin", "b"], 2, Limits(1.0, 1 << 28), chunk=1):
        print(result, flush=True)
""")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/preprocess")])
    environment = {**os.environ, "PYTHONPATH": path}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None and parent.stdout.readline() == b"a\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 3  # the server and two workers
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(children, timeout=10)[1]
