"""Copies of an unfinished training on storage that other machines see, so that it can resume on another one.

A training works in its folder on the local disk. If GANPIPE_UNFINISHED names a folder, the training's files
are copied to its subfolder KEY after each checkpoint. No lock is trusted there: each attempt claims a number
and writes only N.json, the list of its files, and N/, the files, each named by its sha256. An attempt stops
when it sees a higher number, and an interrupted copy changes no list.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.processes import NODE
from ganpipe.train.resume import unfinished

SKIPPED = re.compile(r".*\.(tmp|damaged)")
CHECKPOINT = re.compile(r"attempts/(\d+)/(?:healthy/)?(\d+)\.checkpoint")
PAUSES = (0, 2, 10)  # seconds before each try to read a copy


class Copies:
    """The copies of one training; the constructor claims the number of this attempt."""

    def __init__(self, shared: Path, folder: Path) -> None:
        self.shared, self.folder = shared, folder
        self.record = files.claim(shared)
        self.store = self.record.with_suffix("")
        self.known: dict[str, tuple[int, int, str]] = {}  # file → its mtime in ns, size in bytes, sha256
        self.away = False

    def restore(self) -> None:
        """Replace the training's folder by the newest whole copy that went further, if there is one."""
        own = _progress(str(path.relative_to(self.folder)) for path in _files(self.folder))
        for record in files.records(self.shared):
            # An older attempt may still be at its last copy, which it began before it could see this one.
            for pause in PAUSES:
                time.sleep(pause)
                listed = _read(record)
                if _progress(listed) <= own:
                    break
                if self._fetch(record.with_suffix(""), listed):
                    return
            else:
                print(f"train: the copy {record} is damaged; trying the one before it", file=sys.stderr)

    def _fetch(self, store: Path, listed: dict[str, str]) -> bool:
        """Replace the training's folder by a copy; return False, and change nothing, if one file is bad."""
        fresh = self.folder.with_suffix(".restored")
        shutil.rmtree(fresh, ignore_errors=True)
        for name, digest in listed.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(store / digest, fresh / name)
            except FileNotFoundError:
                return False
            if files.sha256(fresh / name) != digest:
                return False
        unfinished.remove(self.folder)
        fresh.rename(self.folder)
        return True

    def save(self) -> None:
        """Copy the files that have changed, then list them; storage that fails is reported, and tried again.

        Raises UserError: another attempt has taken over this training.
        """
        if newest := files.newer(self.record):
            reason = f"attempt {newest} has taken over from this attempt {self.record.stem}"
            raise UserError(f"{reason} in {self.shared}; this one stops, and the other trains on")
        try:
            listed = {str(path.relative_to(self.folder)): self._copy(path) for path in _files(self.folder)}
            with files.whole(self.record) as temporary:
                temporary.write_text(json.dumps({"node": NODE, "files": listed}))
            for path in self.store.iterdir():
                if path.name not in listed.values():
                    path.unlink()
            for record in files.records(self.shared):
                if int(record.stem) < int(self.record.stem):
                    record.unlink()
                    shutil.rmtree(record.with_suffix(""), ignore_errors=True)
            self.away = False
        except OSError as error:
            if not self.away:
                print(
                    f"train: no copy in {self.shared} ({error.strerror}); training goes on", file=sys.stderr
                )
            self.away = True

    def _copy(self, path: Path) -> str:
        """Copy a file unless its content is there, and return its sha256."""
        status = path.stat()
        stamp = status.st_mtime_ns, status.st_size
        if (known := self.known.get(str(path))) and known[:2] == stamp and (self.store / known[2]).exists():
            return known[2]
        digest = files.sha256(path)
        if not (self.store / digest).exists():
            with files.whole(self.store / digest) as temporary:
                shutil.copyfile(path, temporary)
        self.known[str(path)] = (*stamp, digest)
        return digest


def copies_of(folder: Path) -> Copies | None:
    """Return the copies of the training in a folder, named by its key; None without GANPIPE_UNFINISHED."""
    shared = os.environ.get(files.UNFINISHED)
    return Copies(Path(shared).expanduser().resolve() / folder.name, folder) if shared else None


def _files(folder: Path) -> list[Path]:
    """List a training's files, without what a later attempt does not read."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and not SKIPPED.fullmatch(p.name)]


def _read(record: Path) -> dict[str, str]:
    """Return file → sha256 of a record; empty for that of an attempt that has made no copy."""
    with suppress(OSError, ValueError):
        return dict(json.loads(record.read_text())["files"])
    return {}


def _progress(names: Iterable[str]) -> tuple[int, int]:
    """Return the rescue and the step that a training's files have reached, (-1, -1) without a checkpoint."""
    reached = [match.groups() for match in map(CHECKPOINT.fullmatch, names) if match]
    return max(((int(rescue), int(step)) for rescue, step in reached), default=(-1, -1))
