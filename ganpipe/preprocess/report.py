"""What preprocess reports on a data set: numbers, a contact sheet, histograms, and a page with all of it."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import StrictUndefined, Template
from matplotlib.figure import Figure
from PIL import Image

from ganpipe.common.sheets import plot_image, sheet
from ganpipe.params import Preprocess

NEAREST, LANCZOS = Image.Resampling.NEAREST, Image.Resampling.LANCZOS
# The contact sheet: number of images, columns, pixels between them, largest side of an image in pixels.
SHEET_IMAGES, SHEET_COLUMNS, SHEET_GAP, SHEET_TILE = 64, 8, 2, 128
# Rows of the page's tables, pairs of copies on it, and images in the mean; all at most.
MOST_ROWS, MOST_PAIRS, MOST_MEAN = 200, 24, 10_000


def numbers(
    index: pd.DataFrame, rejected: pd.DataFrame, copies: pd.DataFrame, params: Preprocess
) -> dict[str, Any]:
    """Count and describe the rows of index.csv, rejected.csv and duplicates.csv, for report.json."""
    reasons = rejected.groupby("reason").size().sort_values(ascending=False, kind="stable")
    train = int((index["split"] == "train").sum())
    sizes = index[["scale", "width", "height"]].astype(float).agg(["min", "median", "max"])
    ranges: dict[Any, Any] = sizes.astype(object).where(sizes.notna(), None).to_dict()
    return {
        "read": len(index) + len(rejected),
        "accepted": len(index),
        "rejected": len(rejected),
        "rejected_by_reason": reasons.to_dict(),
        "train": train,
        "held_out": len(index) - train,
        "resolution": params.resolution,
        "channels": params.channels,
        "copies": {
            **{kind: int((copies["kind"] == kind).sum()) for kind in ("exact", "near")},
            "dropped": int(copies["dropped"].sum()),
            "across_splits": int((~copies["dropped"] & (copies["split"] != copies["original_split"])).sum()),
        },
        "share_upscaled": float((index["scale"] > 1).mean()) if len(index) else None,
        **ranges,
        # The number of images whose scale is between a key and √2 times it.
        "scales": {f"{low:.4g}": int(count) for low, count in zip(*_histogram(index["scale"]), strict=False)},
    }


def _histogram(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return bin edges, powers of √2 around all values, and the counts between them."""
    if values.empty:
        return np.zeros(0), np.zeros(0)
    steps = np.floor(2 * np.log2(values)).astype(int)
    return 2.0 ** (np.arange(steps.min(), steps.max() + 2) / 2), np.bincount(steps - steps.min())


def drawings(images: np.ndarray, index: pd.DataFrame) -> dict[str, bytes]:
    """Return PNG files by name: contact_sheet.png, histograms.png, and the mean of uint8 N×H×W×C images."""
    return {
        "contact_sheet.png": _png(contact_sheet(images)),
        "histograms.png": histograms(index, images.shape[1]),
        "mean": _png(mean_image(images)),
    }


def contact_sheet(images: np.ndarray) -> Image.Image:
    """Show up to SHEET_IMAGES of uint8 N×H×W×C, evenly spaced, each at most SHEET_TILE pixels a side."""
    chosen = images[_evenly(len(images), SHEET_IMAGES)]
    # Whole multiples without smoothing: the sheet shows the pixels that will be trained on.
    factor = SHEET_TILE // images.shape[1]
    side, method = (images.shape[1] * factor, NEAREST) if factor else (SHEET_TILE, LANCZOS)
    tiles = [np.asarray(Image.fromarray(image.squeeze()).resize((side, side), method)) for image in chosen]
    return sheet(np.stack(tiles).reshape(len(tiles), side, side, -1), SHEET_COLUMNS, SHEET_GAP)


def mean_image(images: np.ndarray) -> Image.Image:
    """Return the mean of up to MOST_MEAN of uint8 N×H×W×C images, evenly spaced."""
    rows = _evenly(len(images), MOST_MEAN)
    parts = np.array_split(rows, -(-len(rows) // 256))
    total = sum(images[part].sum(axis=0, dtype=np.float64) for part in parts)
    return Image.fromarray(np.rint(total / len(rows)).astype(np.uint8).squeeze())


def _evenly(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def histograms(index: pd.DataFrame, resolution: int) -> bytes:
    """Draw the distributions of the pictures' shorter sides and of the scale factors, as a PNG file."""
    figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
    enlarged = (index["scale"] > 1).mean()
    panels = (
        (index[["width", "height"]].min(axis=1), resolution, "shorter side of the picture, px", "resolution"),
        (index["scale"], 1.0, f"scale: resolution / side of the crop; {enlarged:.1%} enlarged", "unchanged"),
    )
    for axes, (values, mark, label, name) in zip(figure.subplots(1, 2), panels, strict=True):
        edges, counts = _histogram(values)
        axes.stairs(counts, edges, fill=True, color="#4477aa")
        axes.axvline(mark, color="#cc3311", linewidth=1.2, linestyle="--")
        axes.text(mark, 1.01, name, color="#cc3311", transform=axes.get_xaxis_transform(), ha="center")
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(edges[0], mark) / 1.2, max(edges[-1], mark) * 1.2)
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}" if v >= 1 else f"1/{1 / v:g}")
        axes.set(xlabel=label, ylabel="pictures")
    return _png(plot_image(figure))


def page(
    report: dict[str, Any],
    rejected: pd.DataFrame,
    copies: pd.DataFrame,
    pairs: list[np.ndarray],
    drawn: dict[str, bytes],
    source: dict[str, Any],
) -> str:
    """Put everything on one page that needs no other file.

    `report` and `drawn` are what `numbers` and `drawings` return; where no picture was accepted, `drawn` is
    empty. The originals and copies in the first rows of `copies` are `pairs` of uint8 2×H×W×C. Of `source`,
    name, licence, cite and address are shown as far as they are known.
    """
    text = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = Template(text, autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    return template.render(
        base64=lambda data: base64.b64encode(data).decode(),
        report=report,
        rejected=rejected.to_dict("records"),
        copies=copies.to_dict("records"),
        pairs=[[_png(Image.fromarray(image.squeeze())) for image in pair] for pair in pairs],
        drawn=drawn,
        source=source,
        most_rows=MOST_ROWS,
    )


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
