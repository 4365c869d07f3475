"""The description on a run's page in MLflow: scores, data, recipe, the command that repeats it, its grid."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pandas as pd
from jinja2 import Template
from ruamel.yaml import YAML

from ganpipe import params
from ganpipe.common.errors import UserError
from ganpipe.common.git import git
from ganpipe.evaluate.card import brief
from ganpipe.experiments.recipes import hydra_overrides, value_text
from ganpipe.experiments.revisions import Values, experiment_values, flat
from ganpipe.models.papers import architecture_paper, recipe_paper
from ganpipe.tracking.identity import COMMIT, DIRTY, GRID, RECIPE

NOTE = "mlflow.note.content"


def note(
    home: Path, values: Values, tags: Mapping[str, str], model: Mapping[str, Any], metrics: Mapping[str, Any]
) -> str:
    """Write a run's description in markdown from its model.json and, unless empty, its metrics.json."""
    recipe = tags.get(RECIPE, "")
    text = Path(__file__).with_name("note.md.jinja").read_text(encoding="utf-8")
    template = Template(text, trim_blocks=True, lstrip_blocks=True)
    commands = repeat_commands(home, values, tags.get(COMMIT), tags.get(DIRTY) == "false")
    paper = recipe_paper(recipe.partition(" ")[0])
    network = architecture_paper(values["model"]["architecture"])
    facts = {"recipe": recipe, "paper": paper, "network": network, "commands": commands, "brief": brief}
    return template.render(**values, **facts, trained=model, metrics=metrics).rstrip()


def repeat_commands(home: Path, values: Values, commit: str | None, clean: bool) -> str:
    """Return the commands that repeat a run from its commit; empty if git does not have the commit.

    A clean run used exactly the commit's code, whatever the checkout holds now.
    """
    committed = commit and git(home, "show", f"{commit}:{params.PARAMS_FILE}")
    if not commit or not committed:
        return ""
    try:
        before = flat(experiment_values(params.parse(YAML(typ="safe", pure=True).load(committed), commit)))
    except UserError:  # the params of another version of ganpipe
        return ""
    changed = {name: value for name, value in flat(values).items() if before.get(name) != value}
    settings = [f"{name}={value_text(value)}" for name, value in changed.items()]
    edited = not clean and git(home, "diff", "--name-only", commit, "--", "ganpipe", "dvc.yaml")
    remark = ["# apply the uncommitted changes to the code, which `git diff` shows"] if edited else []
    overrides = [f"-S {shlex.quote(override)}" for override in hydra_overrides(settings)]
    return "\n".join([f"git checkout {commit[:12]}", *remark, " ".join(["dvc exp run", *overrides])])


def grid_link(experiment_id: str, grid: str) -> str:
    """Return the last line of a note: a link to the grid's runs, of which each writes only its own note."""
    filtered = {"workflowType": "machine_learning", "searchFilter": f"tags.`{GRID}` = '{grid}'"}
    query = urlencode(filtered, quote_via=quote)
    return f"\n\n**Grid**: [all runs of {grid}](#/experiments/{experiment_id}/runs?{query})"


def summary(folder: Path) -> dict[str, float]:
    """Summarise a training from the tables in its folder as metrics final/… and best/…, all of them finite.

    They are the mean losses over the last twentieth of the steps, the time and rate, and the light KID.
    """
    history, perf, evals = (pd.read_csv(folder / f"{name}.csv") for name in ("history", "perf", "evals"))
    last_steps = history.tail(max(1, len(history) // 20))
    evals = evals.dropna(subset="kid_light").astype(float)
    best = evals.nsmallest(1, "kid_light")
    numbers = {
        "final/d_loss": last_steps["d_loss"].mean(),
        "final/g_loss": last_steps["g_loss"].mean(),
        "final/seconds": perf["seconds"].max(),
        "final/images_per_second": perf["images_per_second"].median(),
        "final/kid_light": evals["kid_light"].tail(1).mean(),
        "best/kid_light": best["kid_light"].mean(),
        "best/nimg": best["nimg"].mean(),
    }
    return {name: float(number) for name, number in numbers.items() if math.isfinite(number)}
