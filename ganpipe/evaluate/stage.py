"""The last stage: how close the generated images are to the training images, in numbers and in pictures."""

import json
from pathlib import Path

import pandas as pd
from jinja2 import Template

from ganpipe.common import dataset, files
from ganpipe.common.stages import stage_file, stage_folder
from ganpipe.evaluate import figures, inputs
from ganpipe.evaluate.card import card
from ganpipe.evaluate.classes import score_classes
from ganpipe.evaluate.extraction import RealImages
from ganpipe.evaluate.scores import Metrics, Scores, score_images, summary
from ganpipe.params import Evaluate, Sample

# snapshots.csv names its distances without their extractor, so that DVC's plots fit any.
DETAILS = ["diversity", "contrast"]
SNAPSHOT_COLUMNS = ["epoch", "nimg", "kid", "fd", "layout_kid", "layout_mmd", *figures.SHARES, *DETAILS]


def evaluate(params: Evaluate, sample: Sample, root: Path, device: str) -> Metrics:
    """Compare sets of generated images, of each interval of z and of snapshots, with training images.

    Reads stages/preprocess, stages/sample and, with `params.snapshots`, stages/train; the card also reads
    stages/fetch and stages/train. Writes all outputs of stages/evaluate and prints a summary; without
    intervals or snapshots their tables have no rows. The generated images are cut into `params.seeds` sets
    of N, N being at most the number of training images. The floor is the same comparison with N held-out
    images in place of the generated ones: the score of a perfect generator. The section `sample` determines
    the z of the snapshots' images.

    Returns:
        The content of metrics.json.

    Raises UserError: a file of an earlier stage is missing or does not fit, or there are too few images.
    """
    data = dataset.load(stage_folder(root, "preprocess"))
    generated = inputs.load_samples(root, data.images.shape[1:])
    intervals = inputs.load_intervals(root, generated.shape)
    count = len(generated) // params.seeds
    snapshots = inputs.open_snapshots(root, sample, count, device) if params.snapshots else {}
    real = RealImages(data.images, data.train_rows, data.images, data.held_out_rows, data.digest)
    others = [*(interval.images for interval in intervals), *snapshots.values()]
    scores = score_images(real, generated, params, device, root, others)
    scores.metrics.update(score_classes(root, data, scores, params, sample.seed))
    metrics, names, features, n = scores.metrics, scores.names, scores.features, scores.features.n
    of_intervals, of_snapshots = scores.others[: len(intervals)], scores.others[len(intervals) :]
    kids = [f"{name}{end}" for name in (names.kid, names.layout_kid, names.layout_mmd) for end in ("", "_sd")]
    columns = ["factor", *kids, "precision", "recall", "density", "coverage", *DETAILS]
    rows = [{"factor": i.factor, **numbers} for i, numbers in zip(intervals, of_intervals, strict=True)]
    interval_table = pd.DataFrame(rows, columns=columns)
    # A length in steps can end within the last snapshot's epoch.
    nimg = json.loads(stage_file(root, "model.json").read_text())["nimg"] if snapshots else 0
    rows = [
        {"epoch": epoch, "nimg": min(epoch * len(data.train_rows), nimg), **numbers}
        for epoch, numbers in zip(snapshots, of_snapshots, strict=True)
    ]
    snapshot_table = pd.DataFrame(rows, columns=["epoch", "nimg", *names, *figures.SHARES, *DETAILS])
    texts = {
        "metrics.json": json.dumps(metrics, indent=2) + "\n",
        "card.md": card(root, metrics),
        "intervals.csv": interval_table.to_csv(index=False),
        "snapshots.csv": snapshot_table.to_csv(index=False, header=SNAPSHOT_COLUMNS),
    }
    for name, text in texts.items():
        with files.whole(stage_file(root, name)) as path:
            path.write_text(text, encoding="utf-8")
    pictures = {
        "real_fake.png": figures.real_fake_picture(data.images, scores.train_rows[:n], generated),
        "nearest.png": figures.nearest_picture(features, generated, data.images, scores.train_rows),
        "features.png": figures.features_picture(features),
        "intervals.png": figures.intervals_picture(intervals, of_intervals, names.kid, n * params.seeds),
        "snapshots.png": figures.snapshots_picture(list(snapshots), of_snapshots, names, metrics),
    }
    for name, picture in pictures.items():
        with files.whole(stage_file(root, name)) as path:
            picture.save(path, format="PNG")
    _print_summary(scores, params, len(intervals), len(data.held_out_rows))
    return metrics


def _print_summary(scores: Scores, params: Evaluate, intervals: int, held_out: int) -> None:
    n = scores.features.n
    if held_out < n:
        remedy = "raise preprocess.held_out"
        if held_out > params.neighbours:
            remedy = f"set sample.count to at most {held_out * params.seeds} or {remedy}"
        print(f"No floor: it needs {n} held-out images and there are {held_out}; {remedy}.")
    text = Path(__file__).with_name("next.txt.jinja").read_text(encoding="utf-8")
    print(summary(scores))
    print(Template(text, trim_blocks=True).render(intervals=intervals, snapshots=params.snapshots))
