"""What preprocess says about a set: numbers, a contact sheet, histograms, and a page with all of it."""

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import starmap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from ganpipe.common import sheets as pictures
from ganpipe.preprocess.crop import Target

# The contact sheet: images, columns, pixels between them, most pixels a side of one.
SHEET_IMAGES, SHEET_COLUMNS, SHEET_GAP, SHEET_TILE = 64, 8, 2, 128
# Rows of the page's tables, pairs of copies that it shows, and images that its mean is taken of.
MOST_ROWS, MOST_PAIRS, MOST_MEAN = 200, 24, 10_000
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .2em .8em; text-align: left }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd; overflow-wrap: anywhere }
td.number { text-align: right } h2 { margin-top: 2em } img { max-width: 100%; display: block }
img.small { image-rendering: pixelated; width: 96px; display: inline-block; margin-right: 4px }
.pairs { display: flex; flex-wrap: wrap; gap: 1.2em } figure { margin: 0; width: 200px }
figcaption { font-size: 13px; overflow-wrap: anywhere }
"""


def numbers(
    table: pd.DataFrame, reasons: pd.DataFrame, copies: pd.DataFrame, target: Target
) -> dict[str, Any]:
    """Count and describe: the content of report.json.

    Args:
        table: a row an accepted picture: width, height, scale, split.
        reasons: name and reason of the others.
        copies: name, original, kind, split, original_split and dropped of each copy that was found.
        target: what was asked for.
    """
    counts = sorted(Counter(reasons["reason"]).items(), key=lambda pair: (-pair[1], pair[0]))
    train = int((table["split"] == "train").sum())
    return {
        "read": len(table) + len(reasons),
        "accepted": len(table),
        "rejected": len(reasons),
        "rejected_by_reason": dict(counts),
        "train": train,
        "held_out": len(table) - train,
        "resolution": target.resolution,
        "channels": target.channels,
        "copies": {
            **{kind: int((copies["kind"] == kind).sum()) for kind in ("exact", "near")},
            "dropped": int(copies["dropped"].sum()),
            "across_splits": int((~copies["dropped"] & (copies["split"] != copies["original_split"])).sum()),
        },
        "share_upscaled": float((table["scale"] > 1).mean()) if len(table) else None,
        **{name: _spread(table[name]) for name in ("scale", "width", "height")},
        # Images with a scale from the number that stands here up to the square root of 2 times it.
        "scales": {f"{low:.4g}": int(count) for low, count in zip(*_histogram(table["scale"]), strict=False)},
    }


def _spread(values: pd.Series) -> dict[str, float | None]:
    return {
        name: float(getattr(values, name)()) if len(values) else None for name in ("min", "median", "max")
    }


def _histogram(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return edges, powers of the square root of 2 around all values, and the counts between them."""
    if values.empty:
        return np.zeros(0), np.zeros(0)
    steps = np.floor(2 * np.log2(values)).astype(int)
    counts = np.bincount(steps - steps.min())
    return 2.0 ** (np.arange(steps.min(), steps.max() + 2) / 2), counts


def contact_sheet(images: np.ndarray) -> Image.Image:
    """Show up to SHEET_IMAGES of uint8 N×H×W×C, spread evenly, each at most SHEET_TILE pixels a side."""
    rows = np.linspace(0, len(images) - 1, min(len(images), SHEET_IMAGES)).round().astype(int)
    chosen = images[rows]
    side = images.shape[1]
    if side <= SHEET_TILE:
        # Whole multiples without smoothing: what is seen is what will be trained on.
        factor = SHEET_TILE // side
        chosen = chosen.repeat(factor, axis=1).repeat(factor, axis=2)
    else:
        tile = (SHEET_TILE, SHEET_TILE)
        shrunk = [Image.fromarray(image.squeeze()).resize(tile, Image.Resampling.LANCZOS) for image in chosen]
        chosen = np.stack([np.asarray(image).reshape(*tile, -1) for image in shrunk])
    return pictures.sheet(chosen, SHEET_COLUMNS, SHEET_GAP)


def histograms(table: pd.DataFrame, resolution: int) -> bytes:
    """Draw the distributions of the pictures' shorter sides and of the scale factors, as a PNG file."""
    figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
    enlarged = (table["scale"] > 1).mean()
    panels = (
        (table[["width", "height"]].min(axis=1), resolution, "shorter side of the picture, px", "resolution"),
        (table["scale"], 1.0, f"scale: resolution / side of the crop; {enlarged:.1%} enlarged", "unchanged"),
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
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def mean_image(images: np.ndarray) -> Image.Image:
    """Return the mean of up to MOST_MEAN of uint8 N×H×W×C, spread evenly."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), MOST_MEAN)).round().astype(int))
    total = np.zeros(images.shape[1:], np.float64)
    for part in np.array_split(rows, -(-len(rows) // 256)):
        total += images[part].sum(axis=0, dtype=np.float64)
    return Image.fromarray(np.rint(total / len(rows)).astype(np.uint8).squeeze())


def shown(images: np.ndarray, table: pd.DataFrame, resolution: int) -> dict[str, bytes]:
    """Return PNG files by name: contact_sheet.png, histograms.png, and the mean of uint8 N×H×W×C images."""
    return {
        "contact_sheet.png": _png(contact_sheet(images)),
        "histograms.png": histograms(table, resolution),
        "mean": _png(mean_image(images)),
    }


def page(
    report: dict[str, Any],
    reasons: pd.DataFrame,
    copies: pd.DataFrame,
    pairs: Sequence[np.ndarray],
    drawn: dict[str, bytes],
    source: dict[str, Any],
) -> str:
    """Put everything on one page that needs no other file.

    Args:
        report: what `numbers` returns.
        reasons: name and reason of the rejected files.
        copies: what was found, as `numbers` takes it.
        pairs: of the first copies, uint8 2×H×W×C each: the original and the copy.
        drawn: what `shown` returns; empty where no picture was accepted.
        source: name, licence, cite and address of the source, as far as fetch says.
    """
    counts = ("read", "accepted", "rejected", "train", "held_out")
    facts: list[tuple[str, Any]] = [(name.replace("_", " "), report[name]) for name in counts]
    facts += [("side, px", report["resolution"]), ("channels", report["channels"])]
    facts += [
        (f"source: {key}", source.get(key) or "not stated") for key in ("name", "licence", "cite", "address")
    ]
    parts = ["<h1>The training images</h1>", _table((), facts)]
    if drawn:
        parts += ["<h2>Some of them, spread evenly</h2>", _image(drawn["contact_sheet.png"], "contact sheet")]
        parts += ["<h2>Sizes and scale factors</h2>", _image(drawn["histograms.png"], "histograms")]
        parts += ["<h2>Their mean</h2>", _image(drawn["mean"], "mean image", "small")]
    parts += [f"<h2>Rejected files: {len(reasons):,}</h2>"]
    if len(reasons):
        parts += [_table(("reason", "files"), report["rejected_by_reason"].items())]
        parts += _rows(reasons, ("name", "reason"), "rejected.csv")
    parts += [f"<h2>Copies: {len(copies):,}</h2>"]
    if across := report["copies"]["across_splits"]:
        warning = "stand in another split than their original: held-out pictures are trained on"
        parts += [f"<p><b>{across:,} {warning}. preprocess.duplicates=drop leaves copies out.</b></p>"]
    if len(copies):
        figures = starmap(_pair, zip(pairs, copies.to_dict("records"), strict=False))
        parts += ['<div class="pairs">', *figures, "</div>"]
        parts += _rows(copies, ("name", "original", "kind", "split", "original_split"), "duplicates.csv")
    head = f'<meta charset="utf-8"><title>The training images</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f"<!DOCTYPE html>\n<html><head>{head}</head>\n<body>{body}</body></html>\n"


def _pair(pixels: np.ndarray, row: dict[Any, Any]) -> str:
    """Show an original and its copy, uint8 2×H×W×C, side by side."""
    images = [_image(_png(Image.fromarray(image.squeeze())), row["kind"], "small") for image in pixels]
    names = f"{_text(row['original'])}<br>{_text(row['name'])}<br>{row['kind']}"
    return f"<figure>{''.join(images)}<figcaption>{names}</figcaption></figure>"


def _rows(frame: pd.DataFrame, columns: Sequence[str], file: str) -> list[str]:
    if frame.empty:
        return []
    more = f"<p>The first {MOST_ROWS}; all stand in {file}.</p>" if len(frame) > MOST_ROWS else ""
    return [_table(columns, frame[list(columns)].head(MOST_ROWS).itertuples(index=False, name=None)), more]


def _table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    def cell(value: Any) -> str:
        return f'<td class="number">{value:,}</td>' if isinstance(value, int) else f"<td>{_text(value)}</td>"

    lines = ["".join(map(cell, row)) for row in rows]
    if header:
        lines.insert(0, "".join(f"<th>{html.escape(name)}</th>" for name in header))
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _text(value: Any) -> str:
    """Show a text of a stranger's as such, whatever characters and directions of writing are in it."""
    return f"<bdi>{html.escape(str(value))}</bdi>"


def _image(png: bytes, alt: str, kind: str = "") -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="{kind}" alt="{alt}" src="data:image/png;base64,{data}">'


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
