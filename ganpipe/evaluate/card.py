"""The model card: what a generator is made of, how good it is, what it cost; markdown for who receives it."""

import csv
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ganpipe.models.papers import architecture_paper

# What each number means, in the order of the table.
MEANINGS = {
    "kid": "distance of the sets, 0 is perfect",
    "fd": "distance of the sets, falls with their size",
    "fid": "distance of the sets, falls with their size",
    "precision": "share that looks real, 1 is best",
    "recall": "share of the real images that is covered, 1 is best",
    "density": "how real they look, 1 is best",
    "coverage": "share of the real images that has a neighbour, 1 is best",
    "c2st": "how well a classifier tells them from real ones, 0.5 is best",
    "diversity": "spread over that of the real images, 1 is best",
    "nn": "distance to the nearest training image over that of new images, 0 is a copy",
    "authenticity": "share that is no near copy",
}


def card(root: Path, metrics: Mapping[str, Any]) -> str:
    """Write the card from the earlier stages' files.

    Args:
        root: the checkout; what it lacks of source.json, model.json and perf.csv, the images having come from
            elsewhere, is left out.
        metrics: what metrics.json holds.
    """
    source, model = (_read(root / "stages" / n) for n in ("fetch/source.json", "train/model.json"))
    size = f" of {model['resolution']} px images" if model else ""
    parts = [
        f"# A generator{size}{', trained on ' + source['name'] if source else ''}",
        "![Real images on the left, generated ones on the right](real_fake.png)",
    ]
    if source:
        parts += [
            "## Data",
            _list({k: source.get(k) for k in ("name", "licence", "cite", "address", "files")}),
        ]
    if model:
        parts += ["## Network and training", _list(_training(model))]
    parts += ["## Scores", _table(metrics), f"Floor: what as many real images score. {metrics['protocol']}."]
    parts += ["Compare with another generator only where this line is the same."]
    parts += ["## Copies of training images", f"{metrics['memorisation']}."]
    parts += [
        "## How to repeat",
        "Check out the commit that holds the `dvc.lock` of these results and run `dvc repro`; on the same "
        "machine's CPU the same bytes come out. `ganpipe generate -n 64 --seed 0` makes images.",
    ]
    if cost := _cost(root / "stages/train/perf.csv", model):
        parts += ["## Cost", cost]
    return "\n\n".join(parts) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    return found


def _list(values: Mapping[str, Any]) -> str:
    shown = {name: json.dumps(v) if isinstance(v, list | bool) else v for name, v in values.items()}
    return "\n".join(f"- {name}: {value}" for name, value in shown.items() if value is not None)


def _training(model: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"network": architecture_paper(model["architecture"])}
    sizes = (
        "nz",
        "z_distribution",
        "z_limit",
        "ngf",
        "ndf",
        "first_channels",
        "discriminator_norm",
        "channels",
    )
    found |= {name: model[name] for name in sizes if name in model}
    found |= {"training images": f"{model['train_images']:,}, digest {model['data_digest'][:16]}"}
    left_out = ("batch_per_resolution", "batch_size", "snapshot_epochs")
    found |= {"batch_size": model["batch_size"], "images seen": f"{model['nimg']:,}"}
    found |= {name: value for name, value in model["train"].items() if name not in left_out}
    return found | {name: model.get(name) for name in ("weights", "kept_step", "ended", "interventions")}


def _table(metrics: Mapping[str, Any]) -> str:
    lines = ["| number | value | sd | floor | |", "|---|---|---|---|---|"]
    for name, value in metrics.items():
        meaning = MEANINGS.get(name.partition("_")[0])
        over_floor = name.endswith("_ratio") and not name.startswith("nn")
        if meaning and f"{name}_sd" in metrics and not over_floor:
            shown = (value, metrics[f"{name}_sd"], metrics.get(f"{name}_floor"))
            cells = [brief(each) for each in shown]
            lines += [f"| {name} | {' | '.join(cells)} | {meaning} |"]
    return "\n".join(lines)


def brief(value: float | None) -> str:
    """Write a number with three digits, or whole where it is larger; None: there is none."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _cost(path: Path, model: Mapping[str, Any]) -> str:
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return ""
    if not rows:
        return ""
    seconds, rate = float(rows[-1]["seconds"]), statistics.median(float(r["images_per_second"]) for r in rows)
    device = f" on {model['device']}" if "device" in model else ""
    minutes, seconds = divmod(round(seconds), 60)
    return f"Training took {minutes} min {seconds} s{device}, {rate:,.0f} images a second."
