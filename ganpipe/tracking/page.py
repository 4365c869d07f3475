"""What a run's page in MLflow says: scores, data, recipe, the command that repeats it, its grid's others."""

import json
import math
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganpipe import params
from ganpipe.common.errors import UserError
from ganpipe.evaluate.card import brief
from ganpipe.experiments import recipes, revisions
from ganpipe.models.papers import architecture_paper, recipe_paper
from ganpipe.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE, GRID, CELL, RECIPE = "mlflow.note.content", "ganpipe.grid", "ganpipe.cell", "ganpipe.recipe"
MOST_DIFFERENT = 8  # values in which a run may differ from a recipe and still be called after it
OTHERS = "\n\n**Its grid**: "  # begins the last part of the note


def origin(values: Params, name: str | None) -> dict[str, str]:
    """Return tags that say which recipe and which grid a run is of, as far as it is of any."""
    tags = {}
    if found := nearest_recipe(values):
        recipe, differing = found
        tags[RECIPE] = recipe + (f", but for {' '.join(differing)}" if differing else "")
    grids = [grid for grid in values.grids if (name or "").startswith(f"{grid}-")]
    if name and grids and re.search(r"-s\d+$", name):
        tags |= {GRID: max(grids, key=len), CELL: re.sub(r"-s\d+$", "", name)}
    return tags


def nearest_recipe(values: Params) -> tuple[str, list[str]] | None:
    """Return the recipe from which the params differ the least, and how; None where that is much."""
    now, best = revisions.flat_params(values), None
    for recipe in values.recipes:
        try:
            words = recipes.recipe_settings(values, recipe)
            then = revisions.flat_params(recipes.apply_settings(values, words, recipe))
        except UserError:  # it needs more than its words, such as another resolution
            continue
        differing = [f"{key}={_text(now[key])}" for key in now if now[key] != then[key]]
        if len(differing) <= MOST_DIFFERENT and (best is None or len(differing) < len(best[1])):
            best = recipe, differing
    return best


def text(
    home: Path, values: Mapping[str, Mapping[str, Any]], tags: Mapping[str, str], folders: Mapping[Any, Path]
) -> str:
    """Write a run's description in markdown from the files that its stages left.

    Args:
        home: the checkout, whose git knows the run's commit.
        values: section → name → value of the run's params.
        tags: the run's.
        folders: stage → where its files are.
    """
    model = json.loads((folders["train"] / "model.json").read_text(encoding="utf-8"))
    parts = []
    if "evaluate" in folders:
        metrics = json.loads((folders["evaluate"] / "metrics.json").read_text(encoding="utf-8"))
        parts += [_table(metrics), f"Floor: what as many real images score. {metrics.get('protocol', '')}"]
        parts += (
            [f"**Copies of training images**: {metrics['memorisation']}"] if "memorisation" in metrics else []
        )
    epochs = values["train"]["epochs"]
    how = f"{model['train_images']:,} images, {epochs} epoch{'s' * (epochs != 1)} in batches of "
    how += f"{model['batch_size']}, seed {values['train']['seed']}"
    how += f"; ended: {model['ended']}; interventions: {model['interventions']}" if "ended" in model else ""
    fetch, side = values["fetch"], values["preprocess"]["resolution"]
    parts += [
        f"**Data**: `{fetch['source']}`, {side} px, digest `{model['data_digest'][:16]}`",
        f"**Training**: {how}",
        f"**Recipe**: {_recipe(values, tags)}",
    ]
    clean = tags.get("ganpipe.git_dirty") == "false"
    if command := repeat(home, values, tags.get("ganpipe.git_commit"), clean):
        parts += [
            f"**Repeat it exactly** (on the same machine's CPU to the byte):\n\n```\n{command}\n```",
        ]
    return "\n\n".join(parts)


def _table(metrics: Mapping[str, Any]) -> str:
    gap = "&emsp;"  # MLflow sets columns without any
    lines = [f"| metric | value{gap} | sd{gap} | floor |", "|---|---|---|---|"]
    for name, value in metrics.items():
        if f"{name}_sd" in metrics and value is not None:
            sd, floor = (brief(metrics.get(name + end)) for end in ("_sd", "_floor"))
            lines += [f"| {name}{gap} | **{brief(value)}**{gap} | {sd}{gap} | {floor} |"]
    return "\n".join(lines)


def _recipe(values: Mapping[str, Mapping[str, Any]], tags: Mapping[str, str]) -> str:
    if RECIPE in tags:
        paper = recipe_paper(tags[RECIPE].partition(",")[0])
        return f"{tags[RECIPE]} ({paper})" if paper else tags[RECIPE]
    return f"none; the network is {architecture_paper(values['model']['architecture'])}"


def repeat(home: Path, values: Mapping[str, Mapping[str, Any]], commit: str | None, clean: bool) -> str:
    """Return the commands that make a run again from a commit; empty where the commit is not to be had.

    Args:
        home: the checkout.
        values: section → name → value of the run's params.
        commit: that the run was made on.
        clean: whether it was made with the commit's very code, whatever the checkout has now.
    """
    if commit is None:
        return ""
    git = ["git", "-C", str(home)]
    shown = subprocess.run([*git, "show", f"{commit}:{params.PARAMS_FILE}"], capture_output=True, text=True)
    if shown.returncode:
        return ""
    from ruamel.yaml import YAML

    try:
        then = params.parse(YAML(typ="safe", pure=True).load(shown.stdout), commit[:7])
    except UserError:  # an older version's
        return ""
    before = then.experiment
    before["train"]["batch_size"] = then.train.batch_size_for(then.preprocess.resolution)
    words = [
        f"{section}.{name}={_text(value)}"
        for section, part in values.items()
        for name, value in part.items()
        if before[section].get(name) != value
    ]
    differing = [*git, "diff", "--quiet", commit, "--", "ganpipe", "dvc.yaml"]
    edited = not clean and subprocess.run(differing).returncode == 1
    lines = ["# and the changes to the code that git diff shows"] if edited else []
    settings = [f"-S {shlex.quote(word)}" for word in recipes.hydra_overrides(words)]
    return "\n".join([f"git checkout {commit[:12]}", *lines, " ".join(["dvc exp run", *settings])])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def link(client: "MlflowClient", number: str, grid: str) -> None:
    """Let the notes of a grid's runs name each other, with links."""
    found = client.search_runs([number], f"tags.`{GRID}` = '{grid}'", max_results=1000)
    runs = sorted(found, key=lambda run: run.info.run_name or "")
    for run in runs:
        others = [
            f"[{other.info.run_name}](#/experiments/{number}/runs/{other.info.run_id})"
            for other in runs
            if other is not run
        ]
        note = run.data.tags.get(NOTE, "")
        new = note.partition(OTHERS)[0] + f"{OTHERS}{grid}; {', '.join(others) or 'no other run yet'}"
        if new != note:
            client.set_tag(run.info.run_id, NOTE, new)


def summary(folders: Mapping[Any, Path]) -> dict[str, float]:
    """Return final/… and best/…: losses over the last twentieth, time, and the light KID at its best."""
    import pandas as pd

    train = folders["train"]
    history, perf = pd.read_csv(train / "history.csv"), pd.read_csv(train / "perf.csv")
    numbers: dict[str, float] = {}
    if len(history):
        last = history.iloc[-max(1, len(history) // 20) :]
        numbers |= {f"final/{name}": float(last[name].mean()) for name in ("d_loss", "g_loss")}
    if len(perf):
        numbers["final/seconds"] = float(perf["seconds"].iloc[-1])
        numbers["final/images_per_second"] = float(perf["images_per_second"].median())
    evals = pd.read_csv(train / "evals.csv").dropna(subset=["kid_light"])
    if len(evals):
        best = evals.sort_values("kid_light", kind="stable").iloc[0]
        numbers["final/kid_light"] = float(evals["kid_light"].iloc[-1])
        numbers |= {"best/kid_light": float(best["kid_light"]), "best/nimg": float(best["nimg"])}
    return {name: number for name, number in numbers.items() if math.isfinite(number)}
