"""Growing CSV tables."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from ganpipe.train.table import Table


def test_cut_back_to_a_step(tmp_path: Path) -> None:
    """The history of a resumed run would repeat rows or lack some."""
    path = tmp_path / "history.csv"
    with Table(path, ("step", "loss")) as table:
        for step in range(1, 6):
            table.add(step, step / 3)
    with open(path, "a") as file:
        file.write("6,0.1")
    with Table(path, ("step", "loss"), step=3) as table:
        assert table.recent == [[3, 1]]
        table.add(4, 0.123456789)
        assert table.recent == [[4, 0.123457]]
    with Table(path, ("step", "loss"), step=3, recent=2) as table:
        assert table.recent == [[2, 0.666667], [3, 1]]
        table.add(4, 0.123456789)
    assert path.read_text() == "step,loss\n1,0.333333\n2,0.666667\n3,1\n4,0.123457\n"


def test_rows_are_visible_at_once(tmp_path: Path) -> None:
    """Live views of a running training would lag behind."""
    with Table(tmp_path / "t.csv", ("step",)) as table:
        assert table.recent == []
        table.add(1)
        assert (tmp_path / "t.csv").read_text() == "step\n1\n"


def test_a_kill_while_it_is_opened_costs_no_row(tmp_path: Path) -> None:
    """The training would resume from a step whose history is lost."""
    path = tmp_path / "history.csv"
    path.write_text("step\n1\n2\n3\n")

    def die() -> None:
        def write(self: Path, text: str) -> int:
            open(self, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        pytest.MonkeyPatch().setattr(Path, "write_text", write)
        Table(path, ("step",), step=2)

    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL and path.read_text() == "step\n1\n2\n3\n"
    with Table(path, ("step",), step=2):
        assert path.read_text() == "step\n1\n2\n" and list(tmp_path.iterdir()) == [path]
