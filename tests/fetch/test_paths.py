"""fetch.path: what fetch, or DVC before it, cannot read is named in one line, with a remedy."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc_data.hashfile.build import IgnoreInCollectedDirError, build
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.state import State
from dvc_objects.fs.local import LocalFileSystem

from ganpipe.fetch.paths import experiment_problem, path_problem
from ganpipe.params import Fetch


def folder_of(path: Path) -> Fetch:
    """Return params that read a folder."""
    return Fetch(source="folder", path=str(path), url=None, sha256=None)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/nowhere", "does not exist; check the path"),
        ("~nobody-here/pictures", "does not exist; write out the home folder"),
        ("pictures", "does not exist; run `dvc pull`"),
        ("pipe", "is neither a folder nor a file; name a folder, zip or tar"),
    ],
)
def test_a_wrong_path_is_one_line(path: str, problem: str, tmp_path: Path) -> None:
    """A home of nobody would end in a traceback, and reading a pipe would never end."""
    (tmp_path / "pictures.dvc").touch()
    os.mkfifo(tmp_path / "pipe")
    found = path_problem(folder_of(Path(path)), tmp_path)
    assert found.startswith(f"fetch.path: {path} {problem}") and "\n" not in found


def bind_socket(path: Path) -> None:
    """Make a socket, as programs leave them in folders."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # an absolute path may be too long for a socket


def folder_with_file(path: Path) -> None:
    """Make a folder that DVC would leave out if it were empty."""
    path.mkdir()
    (path / "config").touch()


# A file's name → how it is made, and the exception that it is to DVC.
REFUSED: dict[bytes, tuple[Callable[[Path], object], type[Exception]]] = {
    b"dangling.png": (lambda path: path.symlink_to("nowhere"), FileNotFoundError),
    b"circular.png": (lambda path: path.symlink_to(path.name), OSError),
    b"socket.png": (bind_socket, OSError),
    b".dvcignore": (Path.touch, IgnoreInCollectedDirError),
    b"caf\xe9.png": (Path.touch, UnicodeEncodeError),
    b"caf\xe9": (folder_with_file, UnicodeEncodeError),
}
ACCEPTED: dict[bytes, Callable[[Path], object]] = {
    b"two\nlines.png": Path.touch,
    b"back\\slash.png": Path.touch,
    b"a" * 255: Path.touch,
    b".hidden": Path.touch,
    b".git": folder_with_file,
    b"folder": lambda path: path.symlink_to("."),
    "ä\u202e.png".encode(): Path.touch,
    b"link.png": lambda path: path.symlink_to("cat.png"),
}


def dvc_hashes(folder: Path, cache: Path) -> None:
    """Hash a folder as DVC does for a dependency."""
    cache.mkdir()
    state = State(str(cache), str(cache))
    store = HashFileDB(LocalFileSystem(), str(cache), hash_name="md5", state=state)
    build(store, str(folder), LocalFileSystem(), "md5", dry_run=True)


@pytest.mark.parametrize("name", [*REFUSED, *ACCEPTED], ids=repr)
def test_files_that_dvc_cannot_hash_are_named(
    name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvc repro` stops at one odd file among thousands, before ganpipe runs and without a remedy."""
    monkeypatch.chdir(tmp_path)
    inner = tmp_path / "pictures/inner"
    inner.mkdir(parents=True)
    (inner / "cat.png").touch()
    path = inner / os.fsdecode(name)
    problem = ""
    if name in REFUSED:
        make, exception = REFUSED[name]
        make(path)
        with pytest.raises(exception):
            dvc_hashes(tmp_path / "pictures", tmp_path / "cache")
        shown = os.fsencode(path).decode(errors="replace")
        problem = f"fetch.path: DVC cannot hash {shown}"
    else:
        ACCEPTED[name](path)
        dvc_hashes(tmp_path / "pictures", tmp_path / "cache")
    for queued in (False, True):
        found = experiment_problem(folder_of(tmp_path / "pictures"), tmp_path, queued)
        assert found.startswith(problem) and bool(found) == bool(problem)
        assert "remove it, or name a zip or tar" in found or not problem


def test_a_pipe_that_dvc_would_wait_for_is_named(tmp_path: Path) -> None:
    """`dvc repro` hangs without a word."""
    (tmp_path / "pictures").mkdir()
    pipe = tmp_path / "pictures/pipe.png"
    os.mkfifo(pipe)
    reader = threading.Thread(target=dvc_hashes, args=(tmp_path / "pictures", tmp_path / "cache"))
    reader.start()
    with open(pipe, "wb"):  # waits for a reader: DVC opens the pipe, and would wait for a writer
        pass
    reader.join()
    found = experiment_problem(folder_of(tmp_path / "pictures"), tmp_path, queued=False)
    assert found.startswith(f"fetch.path: DVC cannot hash {pipe} (a broken link, pipe or device); remove it")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_without_rights_is_named(tmp_path: Path) -> None:
    """DVC says "Permission denied" without a remedy."""
    (tmp_path / "secret.png").touch(0o000)
    assert "secret.png (not readable); remove it" in experiment_problem(folder_of(tmp_path), tmp_path, False)
