"""Submit a grid's cells to Ray or Slurm, after everything that can be known to fail has been refused."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ganpipe import params
from ganpipe.cluster import board, cell, on_ray, on_slurm, watch
from ganpipe.cluster.board import Order, State
from ganpipe.cluster.options import Options, environment_for
from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.git import git, git_or_error
from ganpipe.experiments import grid as queue
from ganpipe.experiments import recipes, revisions
from ganpipe.fetch.paths import PLACEHOLDER
from ganpipe.tracking import store

ENGINES = ("ray", "slurm")
CODE = ("ganpipe", "dvc.yaml", "params.yaml", ".dvc/config", "*.dvc")  # what a clone of the commit must have


def grid(root: Path, name: str, seeds: int, settings: Iterable[str], options: Options) -> None:
    """Run a grid's experiments where the options say, or collect what has run.

    Raises UserError: nothing was submitted, for reasons of a line each; or a line for each cell that failed.
    """
    if options.collect:
        return watch.collect(root, name, options)
    if options.on is None:
        return queue.grid(root, name, seeds, settings, options.run, options.jobs)
    if options.engine not in ENGINES:
        raise UserError(f"--on {options.on}: expected ray, ray=HOST:PORT, slurm or slurm=PARTITION")
    if not options.run:
        raise UserError("--on needs --run: cells are submitted at once")
    plan = queue.planned(params.load(root / params.PARAMS_FILE), root, name, seeds, settings)
    folders = _submit(root, name, plan, options)
    watch.follow(root, name, folders, options)


def _submit(root: Path, name: str, plan: queue.Plan, options: Options) -> list[Path]:
    """Submit the cells that are neither finished nor running; return the folders of all unfinished ones."""
    shared = watch.shared_folder(root)
    one_machine = options.engine == "ray" and not on_ray.address_of(options)
    hub, remote = _hub(root), _remote(root)
    problems = [*_checkout_problems(root, hub, remote), *_tracking_problems(root, one_machine)]
    if not one_machine and not os.environ.get(files.UNFINISHED):
        problems.append(
            f"{files.UNFINISHED}: set it to a folder that all nodes see, to report and resume there"
        )
    shared.mkdir(parents=True, exist_ok=True)
    if options.engine == "slurm":
        gpus, more = on_slurm.gpus_of(options), on_slurm.problems(options)
    else:
        pictures = {str(flat["fetch.path"]) for _, flat in plan.values()} - {PLACEHOLDER}
        paths = [path for path in (hub, remote.get("url", ""), *pictures) if Path(path).is_absolute()]
        more, gpus = on_ray.problems(options, paths, shared)
    if problems := problems + more:
        raise UserError("\n".join(problems))

    commit = git_or_error(root, "rev-parse", "HEAD")
    watch.fetch(root, f"refs/exps/{commit[:2]}/{commit[2:]}/*")
    with revisions.open_repo(root) as repo:
        cache = repo.cache.local.path if one_machine else None
        missing, states = queue.to_run(repo, root, plan, "origin")
    folders = [board.folder_of(shared, commit, experiment) for experiment in missing]
    waiting = [folder for folder in folders if watch.state_of(folder).state in board.OVER]
    for folder in waiting:
        overrides = recipes.hydra_overrides(plan[folder.name][0])
        order = Order(folder.name, name, commit, overrides, hub, remote, cache, environment_for(gpus))
        _renew(folder, order)
    counts = [f"{len(waiting)} of {len(plan)} cells submitted to {options.on}"]
    counts += [f"{len(folders) - len(waiting)} submitted before"] * (len(folders) > len(waiting))
    print(", ".join([f"{name}: {counts[0]}", *counts[1:], *(f"{n} {s} before" for s, n in states.items())]))
    if waiting and options.engine == "slurm":
        on_slurm.submit(waiting, options, shared / "slurm")
    elif waiting:
        on_ray.submit(waiting, options, gpus, shared / "cells" / "ray.log")
    return folders


def _hub(root: Path) -> str:
    """Return the address of the git remote that nodes clone, empty if none; a path is made absolute."""
    address = git(root, "remote", "get-url", "origin") or ""
    return str((root / address).resolve()) if address and (root / address).exists() else address


def _remote(root: Path) -> dict[str, str]:
    """Return name and address of DVC's default remote; empty if there is none."""
    with revisions.open_repo(root) as repo:
        name = repo.config["core"].get("remote")
        return {"name": name, "url": repo.config["remote"][name]["url"]} if name else {}


def _checkout_problems(root: Path, hub: str, remote: dict[str, str]) -> Iterator[str]:
    """Yield why clones would lack something: remotes, the commit, changes of the code or the params."""
    if changed := git_or_error(root, "status", "--porcelain", "--", *CODE):
        names = ", ".join(line.split(maxsplit=1)[-1] for line in changed.splitlines()[:3])
        yield f"{names}: changed since the commit that nodes clone; commit and push, or undo it"
    if not remote:
        yield "no default DVC remote; `dvc remote add --default storage ADDRESS`, and commit .dvc/config"
    else:
        try:
            with revisions.open_repo(root) as repo:
                cell.try_remote(repo)
                tracked = [str(root / path) for path in git_or_error(root, "ls-files", "*.dvc").splitlines()]
                if missing := cell.missing_data(repo, tracked) if tracked else 0:
                    yield f"the DVC remote {remote['name']} lacks {missing} tracked files; `dvc push`"
        except Exception as error:  # each kind of store raises its own
            text = " ".join(str(error).split())
            yield f"the DVC remote {remote['name']} ({remote['url']}) cannot be used: {text}"
    if not hub:
        yield "no git remote origin; `git remote add origin ADDRESS` and `git push -u origin HEAD`"
        return
    try:
        git_or_error(root, "fetch", "--quiet", "origin")
    except UserError as error:
        yield f"the git remote origin ({hub}) cannot be read: {error}"
        return
    if not git_or_error(root, "for-each-ref", "--contains", "HEAD", "refs/remotes/origin"):
        yield "HEAD is not on the git remote origin; `git push`"


def _tracking_problems(root: Path, one_machine: bool) -> Iterator[str]:
    """Yield why cells could not report to MLflow; on one machine they get the address of its database."""
    address = store.address(root)
    if not one_machine and not address.startswith(("http://", "https://")):
        yield f"MLFLOW_TRACKING_URI: found {address}, expected http(s)://…, for all nodes"
        return
    os.environ["MLFLOW_TRACKING_URI"] = address
    try:
        store.connect(root)
    except Exception as error:  # each kind of store raises its own
        yield store.failure(root, error)


def _renew(folder: Path, order: Order) -> None:
    """Write what a cell is to run; what was recorded or asked of it before counts no more."""
    (folder / board.END).unlink(missing_ok=True)
    order.write(folder)
    if files.records(folder):
        board.write_state(files.claim(folder), State("waiting"))
