"""Sheets of images as pictures: the one way in which this project shows a batch."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Background = tuple[int, int, int]
WHITE: Background = (255, 255, 255)


def columns_for(resolution: int) -> int:
    """Return how many images of a resolution (pixels a side) stand in a grid's row: 8, fewer above 64 px."""
    return min(8, max(2, 512 // resolution))


def sheet(images: np.ndarray, columns: int, gap: int = 0, background: Background = WHITE) -> Image.Image:
    """Lay images out in rows, left to right and top to bottom.

    Args:
        images: uint8 N×H×W×C in [0, 255], C 1 or 3, N at least 1.
        columns: images in a row.
        gap: pixels between neighbours.
        background: colour of gaps and of empty places.

    Returns:
        A picture of mode L for grey images without gap on a full sheet, else RGB.
    """
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    size = (rows * height + (rows - 1) * gap, columns * width + (columns - 1) * gap)
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = background
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    plain = channels == 1 and (gap == 0 and rows * columns == count)
    return Image.fromarray(canvas[:, :, 0] if plain else canvas)


def side_by_side(
    left: Image.Image, right: Image.Image, gap: int = 8, background: Background = WHITE
) -> Image.Image:
    """Join two pictures with a dividing line of `gap` pixels."""
    canvas = Image.new("RGB", (left.width + gap + right.width, max(left.height, right.height)), background)
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + gap, 0))
    return canvas


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """Put black text on a white strip above a picture, with white beside it where the text is wider."""
    size = 24
    font = ImageFont.load_default(size)
    width = max(picture.width, math.ceil(font.getlength(text)))
    canvas = Image.new("RGB", (width, size * 3 // 2 + picture.height), WHITE)
    ImageDraw.Draw(canvas).text((width / 2, size * 3 / 4), text, fill=(0, 0, 0), font=font, anchor="mm")
    canvas.paste(picture, ((width - picture.width) // 2, size * 3 // 2))
    return canvas
