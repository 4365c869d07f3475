"""Sheets of images, with gaps, labels and captions, and drawn plots: how this project shows what it has."""

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

WHITE = (255, 255, 255)
# Pixels: the smallest side of an image in a labelled row, and the largest width of a row of images.
LEAST_SIDE, ROW_WIDTH = 64, 1200
# The colours of runs in charts, distinguishable for people with colour blindness too (Okabe & Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")


def columns_for(resolution: int) -> int:
    """Return the number of images in a row of a grid: 8, or fewer at a resolution above 64 px."""
    return min(8, max(2, 512 // resolution))


def sheet(images: np.ndarray, columns: int, gap: int = 0) -> Image.Image:
    """Lay images out in rows of `columns`, `gap` pixels apart; gaps and empty cells are white.

    Images are uint8 N×H×W×C in [0, 255], C 1 or 3, N at least 1. The picture has mode L for grey images
    without gaps and empty cells, else RGB.
    """
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    size = (rows * height + (rows - 1) * gap, columns * width + (columns - 1) * gap)
    canvas = np.full((*size, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    grey = channels == 1 and gap == 0 and rows * columns == count
    return Image.fromarray(canvas[:, :, 0] if grey else canvas)


def cells(images: np.ndarray, columns: int, least: int = LEAST_SIDE) -> np.ndarray:
    """Repeat pixels, or average them over squares, so that rows of `columns` images suit ROW_WIDTH.

    Images are uint8 N×H×W×C in [0, 255], H = W, C 1 or 3; enlarged ones have sides of `least` pixels or more.
    """
    side = images.shape[1]
    larger, smaller = math.ceil(least / side), math.ceil(columns * side / ROW_WIDTH)
    if smaller == 1:
        return images.repeat(larger, axis=1).repeat(larger, axis=2)
    reduced = [np.asarray(Image.fromarray(image.squeeze()).reduce(smaller)) for image in images]
    return np.stack(reduced).reshape(len(images), *reduced[0].shape[:2], -1)


def labelled(images: np.ndarray, columns: int, labels: list[str], caption: str) -> Image.Image:
    """Lay images out in rows, with a label of one or more lines at the left of each row and a caption above.

    Images are uint8 N×H×W×C in [0, 255], such as `cells` returns, `columns` in a row.
    """
    gap, margin, font = 2, 8, ImageFont.load_default(16)
    rows = sheet(images, columns, gap)
    blank = ImageDraw.Draw(rows)
    strip = 2 * margin + math.ceil(max(blank.multiline_textbbox((0, 0), text, font)[2] for text in labels))
    canvas = ImageOps.expand(rows, (strip, 0, 0, 0), WHITE)
    draw = ImageDraw.Draw(canvas)
    for row, text in enumerate(labels):
        middle = row * (images.shape[1] + gap) + images.shape[1] / 2
        draw.multiline_text((margin, middle), text, fill=(0, 0, 0), font=font, anchor="lm")
    return captioned(canvas, caption, size=16)


def captioned(picture: Image.Image, text: str, size: int = 24) -> Image.Image:
    """Put black text on a white strip above a picture; one narrower than the text gets white margins."""
    font = ImageFont.load_default(size)
    width = max(picture.width, math.ceil(font.getlength(text)))
    canvas = Image.new("RGB", (width, size * 3 // 2 + picture.height), WHITE)
    ImageDraw.Draw(canvas).text((width / 2, size * 3 / 4), text, fill=(0, 0, 0), font=font, anchor="mm")
    canvas.paste(picture, ((width - picture.width) // 2, size * 3 // 2))
    return canvas


def plot_image(figure: Any) -> Image.Image:
    """Draw a matplotlib Figure, without the frames' upper and right lines, once; savefig does so twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, because training draws no plots

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()))
