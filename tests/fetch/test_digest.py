"""The digest of the pictures: what `dvc repro` does with any folder, and when it runs fetch again."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, make_folder, make_zip

from ganpipe.common.errors import UserError
from ganpipe.fetch.digest import write_digest
from ganpipe.fetch.paths import PLACEHOLDER
from ganpipe.params import Fetch


def repro(checkout: Path, **environment: str) -> str:
    """Run the pipeline up to fetch with the real DVC, and return what it printed."""
    command = [sys.executable, "-m", "dvc", "repro", "fetch"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=checkout,
        env=os.environ | {"PATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose fetch.path is ~/pictures (old), [new], without git."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "ganpipe", folder / "ganpipe", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "stages/fetch").mkdir(parents=True)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    text = (folder / "params.yaml").read_text().replace("source: mnist5k", "source: folder")
    path = "path: ~/pictures (old), [new]"
    (folder / "params.yaml").write_text(text.replace(f"path: {PLACEHOLDER}", path))
    return folder


def digest(root: Path, path: Path | str, source: str = "folder") -> str:
    """Write the digest of a path and return it."""
    write_digest(Fetch(source=source, path=str(path), url=None, sha256=None), root)  # type: ignore[arg-type]
    return (root / "stages/fetch/pictures.sha256").read_text()


def test_no_file_stops_or_hangs_dvc(checkout: Path, tmp_path: Path) -> None:
    """One broken link, pipe or .dvcignore among 10,000 pictures would end or hang every `dvc repro`."""
    pictures = make_folder(tmp_path / "pictures (old), [new]")
    links = {"gone.png": "nothing", "loop.png": "loop.png", "again": ".", "endless.png": "/dev/zero"}
    for name, target in links.items():
        (pictures / name).symlink_to(target)
    for name in ("pipe.png", ".hidden pipe"):
        os.mkfifo(pictures / name)
    with socket.socket(socket.AF_UNIX) as bound, pytest.MonkeyPatch.context() as patch:
        patch.chdir(pictures)  # a socket's path may not be longer than 107 bytes
        bound.bind("socket.png")
    for name in (".dvcignore", "sub/.dvcignore"):
        (pictures / name).write_text("*\n")
    Path(os.fsdecode(os.fsencode(pictures) + b"/caf\xe9.png")).write_bytes(b"1")
    printed = repro(checkout, HOME=str(tmp_path))
    shown = ".hidden pipe, again, endless.png, …"
    assert "left out 7 links to folders, broken links, pipes, devices or sparse files: " + shown in printed
    names = pd.read_csv(checkout / "stages/fetch/manifest.csv")["name"].tolist()
    assert names == ["a.png", "caf\N{REPLACEMENT CHARACTER}.png", "sub/b c é'\".gif", "sub/b.jpg"]

    assert re.findall(r"Running stage '(\w+)'", repro(checkout, HOME=str(tmp_path))) == ["pictures"]
    (pictures / "a.png").write_bytes(b"two")  # as many bytes as before
    assert "Running stage 'fetch'" in repro(checkout, HOME=str(tmp_path))


def test_the_digest_is_that_of_names_and_bytes(tmp_path: Path) -> None:
    """A change would be missed, or a copy of the same pictures on another machine train again."""
    first = digest(tmp_path, make_folder(tmp_path / "a"))
    assert digest(tmp_path, make_folder(tmp_path / "b")) == first
    (tmp_path / "b/.hidden").touch()
    assert digest(tmp_path, tmp_path / "b") == first
    (tmp_path / "b/a.png").rename(tmp_path / "b/c.png")
    renamed = digest(tmp_path, tmp_path / "b")
    (tmp_path / "b/c.png").write_bytes(b"two")
    assert len({first, renamed, digest(tmp_path, tmp_path / "b")}) == 3
    archive = digest(tmp_path, make_zip(tmp_path / "a.zip"), "archive")
    sha256 = hashlib.sha256((tmp_path / "a.zip").read_bytes()).hexdigest()
    assert archive.strip() == hashlib.sha256(f"{sha256} \n".encode()).hexdigest()
    assert digest(tmp_path, PLACEHOLDER, "mnist5k").strip() == hashlib.sha256().hexdigest()


def test_only_new_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `dvc repro` would read gigabytes; a damaged record would stop it."""
    folder = make_folder(tmp_path / "a")
    first = digest(tmp_path, folder)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert digest(tmp_path, folder) == first
    (record,) = (tmp_path / ".ganpipe/pictures").glob("*.json")
    record.write_text('{"half')
    assert digest(tmp_path, folder) == first


def test_a_wrong_path_is_one_line(tmp_path: Path) -> None:
    """DVC's own message has no remedy, and a home of nobody would end in a traceback."""
    for path in ("/nowhere", "~nobody-here/pictures"):
        with pytest.raises(UserError, match=f"fetch.path: {path} does not exist; "):
            digest(tmp_path, path)
    (tmp_path / "pictures.dvc").touch()
    with pytest.raises(UserError, match="fetch.path: pictures does not exist; run `dvc pull`"):
        digest(tmp_path, "pictures")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="fetch.path: pipe is neither a folder nor a file"):
        digest(tmp_path, "pipe")
