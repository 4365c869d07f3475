"""fetch.path: its placeholder, and whether a source, DVC and queued experiments can read it."""

import functools
import os
import shlex
from pathlib import Path

from ganpipe.common.git import git
from ganpipe.fetch.catalogue import SOURCES
from ganpipe.params import Fetch

# The value of fetch.path when there is no path to give, because DVC requires a dependency that exists.
PLACEHOLDER = "stages/fetch/packaged.txt"


def path_problem(params: Fetch, root: Path) -> str:
    """Return why the source cannot read fetch.path; empty if it can."""
    source, path = SOURCES[params.source], root / params.path
    if params.path == PLACEHOLDER:
        return f"fetch.source={source.name}: {source.by_hand}" if source.by_hand else ""
    if source.package or source.name == "url":
        origin = "is downloaded from fetch.url" if source.name == "url" else "is part of a package"
        return (
            f"fetch.path: found {params.path!r}, but fetch.source={source.name} {origin}; "
            f"set fetch.source=folder to use your own pictures, or fetch.path={PLACEHOLDER}"
        )
    advice = copy_advice(params.path, root)
    if not path.exists():
        tracked = not advice and not Path(params.path).is_absolute()
        pull = "run `dvc pull`; with --temp or --queue name no stage, or give an absolute path"
        remedy = advice or (pull if tracked else "check the path")
        if params.path.startswith("~"):  # `ganpipe run` and `grid` have written out what was meant
            remedy = "write out the home folder, because DVC knows no ~"
        return f"fetch.path: {params.path} does not exist; {remedy}"
    if not path.is_dir() and not path.is_file():  # opening a pipe would never return
        return f"fetch.path: {params.path} is neither a folder nor a file; name a folder, zip or tar"
    if source.name == "archive" and path.is_dir():
        return f"fetch.path: {params.path} is a folder; set fetch.source=folder or name an archive"
    return ""


def experiment_problem(params: Fetch, root: Path, queued: bool) -> str:
    """Return why an experiment, here or queued, cannot read fetch.path; empty if it can."""
    if problem := path_problem(params, root):
        return problem
    if queued and (advice := copy_advice(params.path, root)):
        return f"fetch.path: {params.path}: {advice}"
    return _unhashable(root / params.path)


@functools.cache  # the cells of a grid read the same folder
def _unhashable(folder: Path) -> str:
    """Return at which file DVC, which hashes the folder before any stage runs, stops or hangs; or empty."""
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent, name)
            if name == ".dvcignore" or str(file).encode(errors="replace") != os.fsencode(file):
                reason = "its name"
            elif not file.is_file():  # it would wait for a pipe
                reason = "a broken link, pipe or device"
            elif not os.access(file, os.R_OK):
                reason = "not readable"
            else:
                continue
            remedy = "remove it, or name a zip or tar of the folder, in which such files are left out"
            shown = os.fsencode(file).decode(errors="replace")
            return f"fetch.path: DVC cannot hash {shown} ({reason}); {remedy}"
    return ""


def copy_advice(path: str, root: Path) -> str:
    """Return what to do if copies of the checkout lack a fetch.path; empty if they have it."""
    where = root / path
    if path == PLACEHOLDER or Path(path).is_absolute() or _is_tracked(where.resolve(), root.resolve()):
        return ""
    return (
        "a queued or --temp experiment runs in a copy of the checkout that has only tracked files: "
        f"give an absolute path, or run `dvc add {shlex.quote(path)}` and commit the .dvc file"
    )


def _is_tracked(path: Path, root: Path) -> bool:
    """Return whether DVC or git tracks an absolute path."""
    if not path.is_relative_to(root):
        return False
    ancestors = [path, *path.parents]
    if any(p.with_name(f"{p.name}.dvc").is_file() for p in ancestors[: ancestors.index(root)]):
        return True
    return bool(git(root, "ls-files", "--", str(path)))
