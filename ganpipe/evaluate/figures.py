"""The evaluate stage's pictures: images side by side, nearest training images, features and curves."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ganpipe.common import sheets
from ganpipe.common.shards import Images
from ganpipe.evaluate.extraction import Features
from ganpipe.evaluate.inputs import Interval
from ganpipe.evaluate.scores import DistanceNames, Numbers, degenerate
from ganpipe.metrics.copies import neighbours

HALF_WIDTH = 540  # of real_fake.png: one half in pixels
# nearest.png: rows, groups in a row, width in pixels; training images in a group.
ROWS, COLUMNS, WIDTH, NEAREST = 10, 3, 1200, 3
GAP, STRIP, FONT = 12, 20, 13  # pixels: space between groups, height of the number under one, its font
SHARES = ("precision", "recall", "density", "coverage")  # snapshots.png: the numbers of the last panel
COLOURS = {"training": "#9a9a9a", "held out": "#1f77b4", "generated": "#e8590c"}


def real_fake_picture(real: Images, rows: np.ndarray, generated: np.ndarray) -> Image.Image:
    """Show up to 64 real images beside as many generated ones, small ones enlarged by a whole factor.

    Images are uint8 N×H×W×C in [0, 255]; `rows` of the real ones, in random order, are at most the generated.
    """
    side = real.shape[1]
    columns = min(sheets.columns_for(side), len(rows))
    count = min(len(rows), columns * sheets.columns_for(side // 2))
    factor = max(1, HALF_WIDTH // (columns * side))
    halves = []
    for images, caption in ((real[rows[:count]], "real"), (generated[:count], "generated")):
        enlarged = images.repeat(factor, axis=1).repeat(factor, axis=2)
        halves.append(np.asarray(sheets.captioned(sheets.sheet(enlarged, columns), caption)))
    return sheets.sheet(np.stack(halves), 2, gap=16)


def nearest_picture(
    features: Features, generated: np.ndarray, train: Images, train_rows: np.ndarray
) -> Image.Image:
    """Show generated images with their three nearest training images, the most suspicious ones first.

    Images are uint8 N×H×W×C in [0, 255]: the generated sets one after the other, and those of which
    `train_rows` are the training images in `features`.
    """
    near = neighbours(np.concatenate(list(features.fakes)), features.train, NEAREST)
    side, across = generated.shape[1], 1 + near.indices.shape[1]
    columns = max(1, min(COLUMNS, WIDTH // (across * max(side, sheets.LEAST_SIDE))))
    font, groups = ImageFont.load_default(FONT), []
    for i in np.argsort(near.relative_distance, kind="stable")[: ROWS * columns]:
        images = np.concatenate([generated[i][None], train[train_rows[near.indices[i]]]])
        row = sheets.sheet(sheets.cells(images, across * columns), across, gap=2)
        group = ImageOps.expand(row, (0, 0, 0, STRIP), sheets.WHITE)
        draw, distance = ImageDraw.Draw(group), near.relative_distance[i]
        draw.rectangle((0, 0, row.height - 1, row.height - 1), outline=COLOURS["generated"])
        text = f"{distance:.2f}" if np.isfinite(distance) else "new"
        draw.text((0, row.height + 2), text, fill=(0, 0, 0), font=font)
        groups.append(np.asarray(group))
    picture = sheets.sheet(np.stack(groups), columns, GAP)
    for line in (
        "Number: distance to the nearest, over its distance to its own nearest; 0 is a copy, above 1 new",
        "Generated images (framed) and their three nearest training images, most suspicious first",
    ):
        picture = sheets.captioned(picture, line, 16)
    return picture


def features_picture(features: Features) -> Image.Image:
    """Plot the features of training, held-out and generated images, and their distances to training images.

    Left: the first two principal components of the reference. Right: a histogram of distances to the nearest
    training image; if generated images lie to the left of the held-out ones, they may be copies.
    """
    from sklearn.decomposition import PCA

    sets = {"training": features.train[: features.n], "held out": features.held_out}
    sets["generated"] = np.concatenate(list(features.fakes))
    sets = {name: rows for name, rows in sets.items() if len(rows) > 1}
    plane = PCA(2, svd_solver="randomized", random_state=0).fit(sets["training"])
    figure = Figure(figsize=(11, 4.8), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in sets.items():
        x, y = plane.transform(rows[: features.n]).T
        label = f"{name} ({len(x)})"
        left.scatter(x, y, s=9, alpha=0.55, color=COLOURS[name], linewidths=0, label=label)
    shares = plane.explained_variance_ratio_
    left.set(title="Features on the principal components of the training images")
    x_label = f"first component ({shares[0]:.0%} of the variance)"
    left.set(xlabel=x_label, ylabel=f"second component ({shares[1]:.0%})")
    del sets["training"]
    distances = {name: neighbours(rows, features.train, 1).distances[:, 0] for name, rows in sets.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(distances.values())), 40)
    for name, values in distances.items():
        weights = np.full(len(values), 100 / len(values))
        style = {"alpha": 0.5, "color": COLOURS[name], "label": f"{name} ({len(values)})"}
        right.hist(values, edges, weights=weights, **style)
        right.axvline(float(np.median(values)), color=COLOURS[name], linestyle="--", linewidth=1.2)
    right.set(title="Distance to the nearest training image; 0 is a copy", ylabel="% of the images")
    right.set(xlabel="distance between features (dashed: median)", xlim=(0, None))
    for axes in (left, right):
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    return sheets.plot_image(figure)


def intervals_picture(
    intervals: Sequence[Interval], numbers: Sequence[Numbers], kid: str, n: int
) -> Image.Image:
    """Show the first images of each interval of z in a row, with its numbers, of n images, on the left."""
    if not intervals:
        return _note("No intervals: sample.intervals is empty")
    images = [interval.images for interval in intervals]
    columns = min(len(images[0]), max(4, min(8, 1024 // images[0].shape[1])))
    labels = []
    for interval, values in zip(intervals, numbers, strict=True):
        spread = "" if values[f"{kid}_sd"] is None else f" ± {values[f'{kid}_sd']:.3f}"
        labels.append(
            f"z times {interval.factor:g}: {interval.z}\nKID {values[kid]:.3f}{spread}\n"
            f"precision {values['precision']:.2f}   recall {values['recall']:.2f}"
            + (f"\n{flaw}" if (flaw := degenerate(values)) else "")
        )
    cells = sheets.cells(np.concatenate([part[:columns] for part in images]), columns)
    caption = f"Each column has the same z, times the factor of its row; numbers from {n} images a row"
    return sheets.labelled(cells, columns, labels, caption)


def snapshots_picture(
    epochs: Sequence[int], numbers: Sequence[Numbers], names: DistanceNames, metrics: Mapping[str, object]
) -> Image.Image:
    """Plot the snapshots' numbers over their epochs, which ascend, and the floors among the metrics."""
    if not epochs:
        return _note("No scores of snapshots: evaluate.snapshots is false")
    figure = Figure(figsize=(16, 4), dpi=100, layout="constrained")
    fd = f"{'FID' if names.fd == 'fid' else 'FD'} (lower is better)"
    titles = ("KID (0 is perfect)", "layout MMD (0 is perfect)", fd, "1 is best")
    panels = ((names.kid, names.layout_kid), (names.layout_mmd,), (names.fd,), SHARES)
    for axes, title, panel in zip(figure.subplots(1, 4), titles, panels, strict=True):
        for name in panel:
            values = np.array([row[name] for row in numbers], float)
            (line,) = axes.plot(epochs, values, "o-", markersize=4, label=name, clip_on=False)
            if metrics[f"{name}_floor"] is not None:
                axes.axhline(metrics[f"{name}_floor"], color=line.get_color(), linestyle="--", linewidth=1)
        floor = "" if metrics[f"{panel[0]}_floor"] is None else " (dashed: held-out images)"
        axes.set(title=title, xlabel=f"epoch{floor}")
        low, high = axes.get_ylim()
        axes.set_ylim(min(0, low) if panel in panels[:2] else 0, max(1, high) if panel == SHARES else high)
        axes.set_xlim(0, epochs[-1] * 1.05)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)
    return sheets.plot_image(figure)


def _note(text: str) -> Image.Image:
    return sheets.captioned(Image.new("L", (540, 8), 255), text, 16)
