"""Start a recipe as one DVC experiment, in an environment that queued grids share."""

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from ganpipe import params
from ganpipe.common.errors import UserError, without_secrets
from ganpipe.experiments.recipes import apply_settings, hydra_overrides, recipe_settings
from ganpipe.fetch.paths import experiment_problem


def run(
    root: Path, recipe: str, settings: Iterable[str] = (), name: str | None = None, queue: bool = False
) -> NoReturn:
    """Print the `dvc exp run` command of a recipe, and replace this process by it.

    The printed command can be pasted into a shell. The exit code is dvc's. Settings `key=value` override the
    recipe's. Without a name DVC makes one up. With `queue`, the experiment is only added to DVC's queue.

    Raises UserError: before dvc starts: the recipe is unknown, or one line for each wrong setting.
    """
    values = params.load(root / params.PARAMS_FILE)
    expanded = recipe_settings(values, recipe, settings)
    applied = apply_settings(values, expanded, recipe)
    if problem := experiment_problem(applied.fetch, root, queue):
        raise UserError(f"{recipe}: {problem}")
    command = ["dvc", "exp", "run"] + ["--queue"] * queue + (["--name", name] if name else [])
    for override in hydra_overrides(expanded):
        command += ["-S", override]
    print(without_secrets(shlex.join(command)), flush=True)
    os.chdir(root)
    # Not a child process: Ctrl-C and SIGTERM must reach dvc, and wait until the stage has saved a checkpoint.
    os.execve(sys.executable, [sys.executable, "-m", *command], dvc_environment())


def dvc_environment() -> dict[str, str]:
    """Return the environment in which DVC's workers (`dvc`) and the stages (`python`) use this Python."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
