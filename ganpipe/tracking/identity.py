"""Which experiment a checkout holds: its params, data and code, the key of its MLflow run, and its tags."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ganpipe import params
from ganpipe.common import dataset
from ganpipe.common.errors import UserError
from ganpipe.common.git import git
from ganpipe.common.stages import stage_folder
from ganpipe.experiments.recipes import apply_settings, cell_name, recipe_settings, value_text
from ganpipe.experiments.revisions import Values, code_digest_of, experiment_values, flat, flat_params
from ganpipe.params import Params

Stage = Literal["train", "sample", "evaluate"]
Folders = Mapping[Stage, Path]  # stage → the folder that holds its files

TRACKED: tuple[Stage, ...] = ("train", "sample", "evaluate")  # the stages whose results MLflow shows
COMMIT, DIRTY, BASELINE = "ganpipe.git_commit", "ganpipe.git_dirty", "dvc.exp_baseline_rev"
RECIPE, GRID, CELL = "ganpipe.recipe", "ganpipe.grid", "ganpipe.cell"
MAX_DIFFERENT = 8  # values in which a run may differ from a recipe and still be named after it


@dataclass(frozen=True)
class Experiment:
    """What distinguishes an experiment from others, and where it comes from."""

    values: Values  # of params.yaml, with train.batch_size set for the resolution
    data_digest: str  # of the packed data set
    code_digest: str  # of all files that train, sample and evaluate import
    tags: dict[str, str]  # for MLflow: the commit, DVC's experiment, the recipe, the grid and the digests
    name: str | None  # the run's name; None: an existing run keeps its name

    @property
    def key(self) -> str:
        """Sixteen hexadecimal characters that identify the experiment's run in MLflow."""
        content = json.dumps([self.values, self.data_digest, self.code_digest], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def check(self, model: Mapping[str, Any]) -> None:
        """Raise a UserError if the model of a model.json was trained with other params or on other data."""
        trained = {f"model.{name}": model[name] for name in self.values["model"]}
        trained |= {f"train.{name}": value for name, value in model["train"].items()}
        trained |= {"train.batch_size": model["batch_size"], "the data's digest": model["data_digest"]}
        current = flat(self.values) | {"the data's digest": self.data_digest}
        for name, value in trained.items():
            if current.get(name) != value:
                change = f"{name} was {value} and is now {current.get(name)}"
                raise UserError(f"the trained model belongs to other params: {change}; run `dvc repro`")


def identify(
    root: Path, name: str | None = None, digest: str | None = None, origin: Mapping[str, str] | None = None
) -> Experiment:
    """Read from a checkout which experiment it holds.

    The digest defaults to that of stages/preprocess. Without an origin (tags of git and DVC), git and DVC's
    environment variables give it, and the name defaults to that of the running DVC experiment.

    Raises UserError: params.yaml is not valid, or the packed data set is not complete.
    """
    loaded = params.load(root / params.PARAMS_FILE)
    values = experiment_values(loaded)
    code = code_digest_of(root, TRACKED)
    data = digest or dataset.load(stage_folder(root, "preprocess")).digest
    if origin is None:
        name = name or os.environ.get("DVC_EXP_NAME")
        origin = git_tags(root) | {BASELINE: os.environ.get("DVC_EXP_BASELINE_REV", "")}
    tags = {**origin, **recipe_and_grid_tags(loaded, name), "dvc.exp_name": name or ""}
    tags |= {"ganpipe.data_digest": data, "ganpipe.code_digest": code}
    return Experiment(values, data, code, {key: value for key, value in tags.items() if value}, name)


def git_tags(root: Path) -> dict[str, str]:
    """Return tags of the commit and of changes to code, params or pipeline since; none outside git."""
    commit = git(root, "rev-parse", "HEAD")
    # Without dvc.lock, which every `dvc repro` changes.
    changed = git(root, "status", "--porcelain", "--", "params.yaml", "dvc.yaml", "ganpipe")
    if commit is None or changed is None:
        return {}
    return {COMMIT: commit, DIRTY: "true" if changed else "false"}


def recipe_and_grid_tags(values: Params, name: str | None) -> dict[str, str]:
    """Return tags for the nearest recipe, and for the grid of a name <grid>-<settings>-s<seed>."""
    tags = {}
    if nearest := nearest_recipe(values):
        recipe, differing = nearest
        tags[RECIPE] = " ".join([recipe, *(["with", *differing] if differing else [])])
    cell = cell_name(name or "")
    grids = [grid for grid in values.grids if cell.startswith(f"{grid}-")]
    if grids and cell != name:
        tags |= {GRID: max(grids, key=len), CELL: cell}
    return tags


def nearest_recipe(values: Params) -> tuple[str, list[str]] | None:
    """Return the recipe with the fewest differing values, and these as `key=value`; None: none is near."""
    current, best = flat_params(values), None
    for recipe in values.recipes:
        try:
            applied = flat_params(apply_settings(values, recipe_settings(values, recipe), recipe))
        except UserError:  # the recipe needs further settings, such as another resolution
            continue
        differing = [f"{key}={value_text(current[key])}" for key in current if current[key] != applied[key]]
        if len(differing) <= MAX_DIFFERENT and (best is None or len(differing) < len(best[1])):
            best = recipe, differing
    return best
