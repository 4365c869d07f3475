"""The experiments that DVC holds: revisions with params, code, and a dvc.lock that tells how far they ran."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from ganpipe import params
from ganpipe.common.code import code_digest, import_closure
from ganpipe.common.errors import UserError, without_secrets
from ganpipe.common.git import git
from ganpipe.common.stages import STAGES, stage_file
from ganpipe.params import Params

# What reading the files of an experiment that another version of ganpipe made can raise.
UNREADABLE = (UserError, KeyError, ValueError, SyntaxError)

Values = dict[str, dict[str, Any]]  # section of params.yaml → name → value


@dataclass(frozen=True)
class Experiment:
    """An experiment that DVC holds."""

    state: str  # "finished", "running" or "queued"
    revision: str  # the commit that holds its params, code and dvc.lock
    baseline: str  # the commit that it started from


@contextmanager
def open_repo(root: Path) -> Iterator[Any]:
    """Open the checkout's DVC repository; its errors become a UserError of one line."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    try:
        with Repo(str(root)) as repo:
            yield repo
    except (DvcException, SCMError) as error:
        raise UserError(f"DVC: {' '.join(str(error).split())}") from None


def finished(repo: Any) -> dict[str, list[Experiment]]:
    """Return name → finished experiments: those started from the current commit first, then the newest."""
    head = repo.scm.get_rev()
    experiments: dict[str, list[Experiment]] = {}
    for baseline, entries in repo.experiments.ls(all_commits=True).items():
        for name, revision in entries:
            experiments.setdefault(name, []).append(Experiment("finished", revision, baseline))
    for same in experiments.values():
        same.sort(key=lambda e: (e.baseline != head, -repo.scm.resolve_commit(e.revision).commit_time))
    return experiments


def identity_of(root: Path, revision: str) -> tuple[dict[str, Any], str, str | None]:
    """Return an experiment's flat params, its code's digest, and the last stage as `unpack` does."""
    with TemporaryDirectory(prefix="ganpipe-") as folder:
        values, last = unpack(root, revision, Path(folder))
        return flat_params(values), code_digest_of(Path(folder)), last


def unpack(root: Path, revision: str, folder: Path) -> tuple[Params, str | None]:
    """Copy params.yaml, dvc.lock and the code of an experiment into a folder.

    Returns:
        Its params, and the last stage that ran with these params and this code according to its dvc.lock.

    Raises UserError: the revision has no such files, or its params are not valid in this version of ganpipe.
    """
    listed = git(root, "ls-tree", "--name-only", revision) or ""
    paths = {"params.yaml", "dvc.lock", "ganpipe"} & set(listed.splitlines())
    if "params.yaml" not in paths:
        raise UserError(f"{revision[:7]}: holds no experiment of ganpipe")
    archive = folder / "revision.zip"
    git(root, "archive", f"--output={archive}", revision, *paths)
    shutil.unpack_archive(archive, folder)
    return params.load(folder / params.PARAMS_FILE), last_valid(folder) if "dvc.lock" in paths else None


def read_outputs(root: Path, name: str, revision: str, outputs: Sequence[str]) -> dict[str, bytes]:
    """Return output → content of an experiment's outputs, read from git or DVC's cache.

    An output that is a folder has an item for each of its files, such as "grids/1.png".

    Raises UserError: one of them is not in the cache.
    """
    from dvc.api import DVCFileSystem
    from dvc_data.index import DataIndexDirError

    system, contents = DVCFileSystem(str(root), rev=revision), dict[str, bytes]()
    try:
        for output in outputs:
            path = stage_file(Path(), output).as_posix()
            files = system.find(path) or [path]  # reading a path that is not there raises the error
            contents |= {output + file.removeprefix(path): system.read_bytes(file) for file in files}
    except (OSError, KeyError, DataIndexDirError):
        remedy = f"`dvc exp apply {name}` and `dvc pull` fetch it, or `dvc repro` makes it again"
        raise UserError(f"{output} is not in DVC's cache; {remedy}") from None
    return contents


def last_valid(folder: Path) -> str | None:
    """Return the last stage up to which a folder's dvc.lock matches its params, its code and itself."""
    read = YAML(typ="safe", pure=True).load
    lock, values = read(folder / "dvc.lock")["stages"], read(folder / "params.yaml")
    digests = {out["path"]: out.get("md5") for entry in lock.values() for out in entry.get("outs", [])}
    last = None
    for stage in STAGES:
        if stage not in lock:
            break
        locked_params = lock[stage].get("params", {}).get("params.yaml", {})
        deps = {dep["path"]: dep.get("md5") for dep in lock[stage].get("deps", [])}
        digests |= {path: _code_md5(folder / path) for path in deps if path.startswith("ganpipe/")}
        # A dependency that is neither an output nor code is the user's pictures, which no revision holds.
        valid = all(digests.get(path, md5) == md5 for path, md5 in deps.items())
        if not valid or any(values.get(section) != value for section, value in locked_params.items()):
            break
        last = stage
    return last


def _code_md5(path: Path) -> str | None:
    """Return the md5 that dvc.lock has for a file or folder of code; None: it does not exist."""
    if not path.is_dir():
        return hashlib.md5(path.read_bytes()).hexdigest() if path.exists() else None
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    entries = [{"md5": _code_md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    return f"{hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest()}.dir"


def flat_params(values: Params) -> dict[str, Any]:
    """Return dotted name → value of an experiment's params, with the batch size looked up in its table."""
    names = flat(experiment_values(values))
    del names["train.batch_per_resolution"]
    return names


def experiment_values(loaded: Params) -> Values:
    """Return an experiment's sections of params.yaml, with train.batch_size set and without passwords."""
    values = loaded.experiment
    values["fetch"]["url"] = without_secrets(loaded.fetch.url or "") or None
    values["train"]["batch_size"] = loaded.train.batch_size_for(loaded.preprocess.resolution)
    return values


def flat(values: Values) -> dict[str, Any]:
    """Return the values by dotted name, such as "train.glr"."""
    return {f"{section}.{name}": v for section, part in values.items() for name, v in part.items()}


def code_digest_of(root: Path, stages: Sequence[str] = STAGES) -> str:
    """Return the digest of the code of stages in a checkout."""
    modules = {path for stage in stages for path in import_closure(f"ganpipe.{stage}.stage", root)}
    return code_digest(modules, root)
