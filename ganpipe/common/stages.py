"""The pipeline's facts: the stages in their order, the files that each writes, the columns of the tables."""

from pathlib import Path

STAGES = ("fetch", "preprocess", "train", "sample", "evaluate")
# What each stage writes into stages/<stage>/, as dvc.yaml lists it (tests/test_pipeline.py compares them).
OUTPUTS: dict[str, tuple[str, ...]] = {
    "fetch": ("images.zip", "manifest.csv", "landmarks.csv", "labels.csv", "source.json"),
    "preprocess": (
        *("images.npy", "shards", "index.csv", "data.json", "rejected.csv", "duplicates.csv"),
        *("report.json", "report.html", "contact_sheet.png", "histograms.png"),
    ),
    "train": (
        *("generator.safetensors", "model.json", "history.csv", "evals.csv", "events.csv", "perf.csv"),
        *("grids", "snapshots"),
    ),
    "sample": (
        *("samples.npy", "intervals.npy", "intervals.json", "grid.png", "traversal.png"),
        *("interpolation.png", "interpolation.webp", "epochs.png"),
    ),
    "evaluate": (
        *("metrics.json", "card.md", "real_fake.png", "nearest.png", "features.png"),
        *("snapshots.csv", "snapshots.png", "intervals.csv", "intervals.png"),
    ),
}
_STAGE_OF = {name: stage for stage, names in OUTPUTS.items() for name in names}

# Columns of stages/train's tables: of history.csv each step's numbers, of evals.csv the light metrics of G.
STEP_NUMBERS = ("d_loss", "g_loss", "d_real", "d_fake", "d_grad_norm", "g_grad_norm")
HISTORY_COLUMNS = ("step", "nimg", "epoch", "attempt", *STEP_NUMBERS)
EVALS_COLUMNS = ("step", "nimg", "kid_light", "spread", "real_spread")
PERF_COLUMNS = ("step", "nimg", "seconds", "images_per_second")


def stage_folder(root: Path, stage: str) -> Path:
    """Return the folder of a checkout that a stage writes to."""
    return root / "stages" / stage


def stage_file(root: Path, name: str) -> Path:
    """Return where a checkout has an output, such as "history.csv"; the names of outputs are unique."""
    return stage_folder(root, _STAGE_OF[name]) / name
