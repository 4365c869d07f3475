"""What DVC's experiments hold: revisions with params, code and a dvc.lock that says how far they ran."""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ganpipe import params
from ganpipe.common import code as closure
from ganpipe.common.errors import UserError
from ganpipe.params import Params

PIPELINE = ("fetch", "preprocess", "train", "sample", "evaluate")


@dataclass(frozen=True)
class Found:
    """An experiment that DVC holds.

    Attributes:
        state: "finished", "running" or "queued".
        revision: the commit that holds its params, code and dvc.lock.
        baseline: the commit that it was made from.
    """

    state: str
    revision: str
    baseline: str


@contextmanager
def opened(root: Path) -> Iterator[Any]:
    """Open the checkout's DVC repository, its own messages silenced and its errors in one line."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.scm import SCMError
    from dvc.ui import ui
    from scmrepo.exceptions import SCMError as GitError

    write, ui.write = ui.write, lambda *_, **__: None
    try:
        with Repo(str(root)) as repo:
            yield repo
    except (DvcException, LockError, SCMError, GitError) as error:
        raise UserError(f"DVC: {' '.join(str(error).split())}") from None
    finally:
        ui.write = write


def finished(repo: Any) -> dict[str, list[Found]]:
    """Return name → finished experiments: those made from the current commit first, then the newest."""
    head, every = repo.scm.get_rev(), repo.experiments.ls(all_commits=True)
    found: dict[str, list[Found]] = {}
    for baseline, experiments in every.items():
        for name, revision in experiments:
            found.setdefault(name, []).append(Found("finished", revision, baseline))
    for several in found.values():
        several.sort(
            key=lambda each: (each.baseline == head, repo.scm.resolve_commit(each.revision).commit_time),
            reverse=True,
        )
    return found


def unpack(root: Path, revision: str, folder: Path) -> tuple[Params, str | None]:
    """Copy params.yaml, dvc.lock and the code of an experiment into a folder.

    Returns:
        Its params, and the last stage that, as its dvc.lock says, ran with them and that code.

    Raises:
        UserError: the revision has no such files, or its params are not those of this version of ganpipe.
    """
    git = ["git", "-C", str(root)]
    there = subprocess.run([*git, "ls-tree", "--name-only", revision], capture_output=True, text=True).stdout
    paths = {"params.yaml", "dvc.lock", "ganpipe"} & set(there.splitlines())
    packed = subprocess.run([*git, "archive", revision, *paths], capture_output=True).stdout if paths else b""
    if "params.yaml" not in paths or not packed:
        raise UserError(f"{revision[:7]}: holds no experiment of ganpipe")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    last = last_valid(folder) if "dvc.lock" in paths else None
    return params.load(folder / params.PARAMS_FILE), last


def last_valid(folder: Path) -> str | None:
    """Return the last stage up to which the dvc.lock of a folder fits its params, its code and itself."""
    read = YAML(typ="safe", pure=True).load
    lock, values = read(folder / "dvc.lock")["stages"], read(folder / "params.yaml")
    digests = {out["path"]: out.get("md5") for entry in lock.values() for out in entry.get("outs", [])}
    last = None
    for name in PIPELINE:
        if name not in lock:
            break
        entry = lock[name]
        used = entry.get("params", {}).get("params.yaml", {})
        needed = {dependency["path"]: dependency.get("md5") for dependency in entry.get("deps", [])}
        digests |= {path: _code_md5(folder / path) for path in needed if path.startswith("ganpipe/")}
        # A dependency that is neither an output nor code is the source itself, which no revision holds.
        fits = all(digests.get(path, md5) == md5 for path, md5 in needed.items())
        if not fits or any(values.get(section) != value for section, value in used.items()):
            break
        last = name
    return last


def _code_md5(path: Path) -> str | None:
    """Return the md5 that dvc.lock has for a file or folder of code; None: it does not exist."""
    if not path.is_dir():
        return hashlib.md5(path.read_bytes()).hexdigest() if path.exists() else None
    names = sorted(file.relative_to(path).parts for file in path.rglob("*") if file.is_file())
    entries = [
        {"md5": hashlib.md5(path.joinpath(*parts).read_bytes()).hexdigest(), "relpath": "/".join(parts)}
        for parts in names
    ]
    return f"{hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest()}.dir"


def flat(values: Params) -> dict[str, Any]:
    """Return dotted name → value of what makes an experiment, the batch size looked up in its table."""
    sections = values.experiment.items()
    names = {f"{section}.{name}": value for section, part in sections for name, value in part.items()}
    names["train.batch_size"] = values.train.batch_size_for(values.preprocess.resolution)
    del names["train.batch_per_resolution"]
    return names


def code_of(root: Path) -> str:
    """Return the digest of the code of all stages of a checkout."""
    each = [closure.import_closure(f"ganpipe.{stage}.stage", root) for stage in PIPELINE]
    return closure.code_digest(set().union(*each), root)
