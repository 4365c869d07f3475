"""The model card of a generator in markdown: its data, training, scores and cost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ganpipe.common.stages import stage_file
from ganpipe.models.papers import architecture_paper
from ganpipe.params import Model

# The beginning of a metric's name → what the metric means.
MEANINGS = {
    "kid": "kernel distance to the real images, 0 is perfect",
    "fd": "Fréchet distance to the real images, falls with n",
    "fid": "Fréchet distance to the real images, falls with n",
    "precision": "share of the generated images that look real, 1 is best",
    "recall": "share of the real images that the generator can make, 1 is best",
    "density": "how real the generated images look, 1 is best",
    "coverage": "share of the real images with a generated image nearby, 1 is best",
    "c2st": "AUC of a classifier of real against generated images, 0.5 is best",
    "diversity": "spread relative to that of the real images, 1 is best",
    "nn": "distance to the nearest training image relative to new images, 0 is a copy",
    "authenticity": "share of the generated images that are no near copies",
}


def card(root: Path, metrics: Mapping[str, Any]) -> str:
    """Write the card from the content of metrics.json and the files of earlier stages in a checkout.

    Sections without their file (source.json, model.json, perf.csv) are left out: images of another program
    have none.
    """
    source, model = (_read(stage_file(root, name)) for name in ("source.json", "model.json"))
    size = f" of {model['resolution']} px images" if model else ""
    parts = [
        f"# A generator{size}{', trained on ' + source['name'] if source else ''}",
        "![Real images on the left, generated ones on the right](real_fake.png)",
    ]
    if source:
        described = {name: source.get(name) for name in ("name", "licence", "cite", "address", "files")}
        parts += ["## Data", _list(described)]
    if model:
        parts += ["## Network and training", _list(_training(model))]
    parts += [
        "## Scores",
        _table(metrics),
        f"Floor: the score of as many held-out real images. {metrics['protocol']}.",
        "Compare two generators only if the line above is the same for both.",
        "## Copies of training images",
        f"{metrics['memorisation']}.",
        "## How to repeat",
        "Check out the commit whose `dvc.lock` has these results and run `dvc repro`; on the same CPU the "
        "bytes are the same. `ganpipe generate -n 64 --seed 0` generates images.",
    ]
    if cost := _cost(stage_file(root, "perf.csv"), model):
        parts += ["## Cost", cost]
    return "\n\n".join(parts) + "\n"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def _list(values: Mapping[str, Any]) -> str:
    text = {name: json.dumps(v) if isinstance(v, list | bool) else v for name, v in values.items()}
    return "\n".join(f"- {name}: {value}" for name, value in text.items() if value is not None)


def _training(model: Mapping[str, Any]) -> dict[str, Any]:
    sizes = [name for name in (*Model.model_fields, "channels") if name != "architecture"]
    left_out = ("batch_per_resolution", "batch_size", "snapshot_epochs")
    return {
        "network": architecture_paper(model["architecture"]),
        **{name: model[name] for name in sizes if name in model},
        "training images": f"{model['train_images']:,}, digest {model['data_digest'][:16]}",
        "batch_size": model["batch_size"],
        "images seen": f"{model['nimg']:,}",
        **{name: value for name, value in model["train"].items() if name not in left_out},
        **{name: model.get(name) for name in ("weights", "kept_step", "ended", "interventions")},
    }


def _table(metrics: Mapping[str, Any]) -> str:
    lines = ["| number | value | sd | floor | |", "|---|---|---|---|---|"]
    for name, value in metrics.items():
        meaning = MEANINGS.get(name.partition("_")[0])
        over_floor = name.endswith("_ratio") and not name.startswith("nn")
        if meaning and f"{name}_sd" in metrics and not over_floor:
            cells = [brief(v) for v in (value, metrics[f"{name}_sd"], metrics.get(f"{name}_floor"))]
            lines += [f"| {name} | {' | '.join(cells)} | {meaning} |"]
    return "\n".join(lines)


def brief(value: float | None) -> str:
    """Format a number with three digits, or as a whole number above 1000; None as a dash."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _cost(path: Path, model: Mapping[str, Any]) -> str:
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    if table.empty:
        return ""
    device = f" on {model['device']}" if "device" in model else ""
    minutes, seconds = divmod(round(table["seconds"].iloc[-1]), 60)
    rate = table["images_per_second"].median()
    return f"Training took {minutes} min {seconds} s{device}, {rate:,.0f} images a second."
