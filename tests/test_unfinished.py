"""The folders of unfinished training."""

import subprocess
import sys
from pathlib import Path

import pytest

from ganpipe import unfinished
from ganpipe.errors import UserError

HOLD = """
import sys
from pathlib import Path
from ganpipe import unfinished
with unfinished.held(Path(sys.argv[1])):
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


def test_two_processes_never_hold_one_folder(tmp_path: Path) -> None:
    """An orphan and its successor would write over each other; a killed one must not block the next."""
    folder = tmp_path / "key"
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], text=True, **pipe) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"process {other.pid}; .*kill {other.pid}"),
            unfinished.held(folder),
        ):
            pass
        other.kill()
    with unfinished.held(folder):
        assert folder.is_dir()


def test_remove(tmp_path: Path) -> None:
    """A folder left over would be resumed as if it were the new training."""
    folder = tmp_path / "key"
    folder.mkdir()
    (folder / "x").touch()
    unfinished.remove(folder)
    unfinished.remove(folder)
    assert list(tmp_path.iterdir()) == []
