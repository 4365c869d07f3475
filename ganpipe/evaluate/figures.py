"""Pictures of what stands behind the numbers: the nearest images, where all lie, and the way there."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ganpipe.common import sheets as pictures
from ganpipe.common.sheets import WHITE
from ganpipe.evaluate.judgement import Features, Numbers
from ganpipe.metrics import copies as memorisation

# Rows of nearest.png, its most generated images in a row, and most pixels of one.
ROWS, COLUMNS, WIDTH = 10, 3, 1200
NEAREST, GAP, STRIP, FONT = 3, 12, 20, 13
# What stands in snapshots.png beside KID and FD.
SHARES = ("precision", "recall", "density", "coverage")
COLOURS = {"training": "#9a9a9a", "held out": "#1f77b4", "generated": "#e8590c"}


def nearest(
    features: Features, generated: np.ndarray, train: np.ndarray, train_rows: np.ndarray
) -> Image.Image:
    """Show generated images with their three nearest training images, the most suspicious ones first.

    Args:
        features: of what follows.
        generated: uint8 N×H×W×C, the sets in turn.
        train: uint8 M×H×W×C.
        train_rows: rows of `train` in `features`.
    """
    found = memorisation.neighbours(np.concatenate(list(features.fakes)), features.train, NEAREST)
    side, across = generated.shape[1], 1 + found.indices.shape[1]
    groups = max(1, min(COLUMNS, WIDTH // (across * max(side, pictures.LEAST_SIDE))))
    order = np.argsort(found.suspicion, kind="stable")[: ROWS * groups]
    images = [np.concatenate([generated[i][None], train[train_rows[found.indices[i]]]]) for i in order]
    cells = [pictures.cells(each, across * groups) for each in images]
    height, width = cells[0].shape[1], across * cells[0].shape[2] + (across - 1) * 2
    rows = -(-len(order) // groups)
    canvas = Image.new("RGB", (groups * (width + GAP) - GAP, rows * (height + STRIP + GAP) - GAP), WHITE)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    for place, (i, each) in enumerate(zip(order, cells, strict=True)):
        left, top = place % groups * (width + GAP), place // groups * (height + STRIP + GAP)
        canvas.paste(pictures.sheet(each[:1], 1), (left, top))
        canvas.paste(pictures.sheet(each[1:], across - 1, 2), (left + each.shape[2] + 2, top))
        draw.rectangle((left, top, left + each.shape[2] - 1, top + height - 1), outline=COLOURS["generated"])
        text = f"{found.suspicion[i]:.2f}" if np.isfinite(found.suspicion[i]) else "new"
        draw.text((left, top + height + 2), text, fill=(0, 0, 0), font=font)
    lines = (
        "Generated images (framed) and their three nearest training images, most suspicious first",
        "Number: distance to the nearest over its distance to its own nearest; 0 a copy, above 1 new",
    )
    for line in reversed(lines):
        canvas = pictures.captioned(canvas, line, 16)
    return canvas


def scattered(features: Features) -> Image.Image:
    """Show where training, held-out and generated images lie, and how far from the training images.

    Left: the two directions in which the training images of the reference differ most. Right: how many images
    are how far from their nearest training image; generated ones left of the held-out ones may be copies.
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
    left.set(xlabel=f"first component ({shares[0]:.0%} of the variance)", ylabel=f"second ({shares[1]:.0%})")
    left.set_title("Features, in the plane that shows most of the training images")
    far = {
        name: memorisation.neighbours(rows, features.train, 1).distances[:, 0]
        for name, rows in sets.items()
        if name != "training"
    }
    edges = np.histogram_bin_edges(np.concatenate(list(far.values())), 40)
    for name, distances in far.items():
        weights = np.full(len(distances), 100 / len(distances))
        style = {"alpha": 0.5, "color": COLOURS[name], "label": f"{name} ({len(distances)})"}
        right.hist(distances, edges, weights=weights, **style)
        right.axvline(float(np.median(distances)), color=COLOURS[name], linestyle="--", linewidth=1.2)
    right.set(xlabel="distance to the nearest training image (dashed: median)", ylabel="% of the images")
    right.set_xlim(left=0)
    right.set_title("How new the images are: 0 is a copy")
    for axes in (left, right):
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    return _drawn(figure)


def curves(
    epochs: Sequence[int], numbers: Sequence[Numbers], names: tuple[str, str], floors: Mapping[str, object]
) -> Image.Image:
    """Show the numbers of a training's snapshots over its epochs.

    Args:
        epochs: of the snapshots, in rising order.
        numbers: of each.
        names: of KID and FD among them.
        floors: name with _floor → what as many held-out images score, None: not known.
    """
    if not epochs:
        note = Image.new("L", (540, 8), 255)
        return pictures.captioned(note, "No snapshots judged: evaluate.snapshots is false", 16)
    figure = Figure(figsize=(12, 4), dpi=100, layout="constrained")
    titles = ("KID: 0 is perfect", f"{'FID' if names[1] == 'fid' else 'FD'}: lower is better", "1 is best")
    panels = ((names[0],), (names[1],), SHARES)
    for axes, title, panel in zip(figure.subplots(1, 3), titles, panels, strict=True):
        for name in panel:
            values = [each[name] for each in numbers]
            (line,) = axes.plot(epochs, values, "o-", markersize=4, label=name, clip_on=False)
            if floors[f"{name}_floor"] is not None:
                axes.axhline(floors[f"{name}_floor"], color=line.get_color(), linestyle="--", linewidth=1)
        axes.set(
            title=title,
            xlabel="epoch" if floors[f"{panel[0]}_floor"] is None else "epoch (dashed: held-out images)",
        )
        low, high = axes.get_ylim()
        axes.set_ylim(min(0, low) if panel == panels[0] else 0, max(1, high) if panel == SHARES else high)
        axes.set_xlim(0, epochs[-1] * 1.05)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)
    return _drawn(figure)


def _drawn(figure: Figure) -> Image.Image:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)
