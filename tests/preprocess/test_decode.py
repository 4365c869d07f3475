"""Decoding: every format and orientation gives the right picture, and every other file the right reason."""

import functools
import importlib.util
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from picture_files import centres, encoded, pixels_of, prepared, quarters, reason, settings
from PIL import Image

from ganpipe.preprocess.decode import MAX_PIXELS, decode

# Options that make an animation of a picture and a white frame.
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (32, 32), "white")]}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(orientation: int, kind: str) -> None:
    """Phone pictures would lie on their sides; the reference is the EXIF standard."""
    upright = np.asarray(quarters().resize((32, 48), Image.Resampling.NEAREST))
    # Where the stored picture's first row and first column lie in the upright one.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    assert decode(data).size == (32, 48)
    assert centres(data) == centres(encoded(quarters()))


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "P", {}),
        ("BMP", "RGB", {}),
        ("PNG", "RGB", FRAMES),
        ("WEBP", "RGB", {"lossless": True, **FRAMES}),
        ("GIF", "RGB", FRAMES),
        ("TIFF", "CMYK", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("WEBP", "RGB", {"lossless": True}),
        ("AVIF", "RGB", {"quality": 100, "subsampling": "4:4:4"}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
    ],
)
def test_a_picture_is_the_same_in_every_colour_mode(kind: str, mode: str, options: dict[str, Any]) -> None:
    """A mode read wrongly would train on inverted or grey pictures, or on other frames, without an error."""
    colours = centres(encoded(quarters(mode), kind, **options))
    expected = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]])
    assert np.abs(np.array(colours) - expected).max() <= 4, colours


@functools.cache
def photograph(width: int, height: int) -> Image.Image:
    """Noise of every coarseness, the coarser the stronger, as photographs have it."""
    rng, total = np.random.default_rng(5), np.zeros((height, width, 3))
    for octave in range(2, 9):
        cells = rng.normal(0, 90 / 1.6**octave, (2**octave, 2**octave, 3))
        size = (width, height)
        bands = [Image.fromarray(cells[:, :, i].astype(np.float32)).resize(size, 3) for i in range(3)]
        total += np.stack([np.asarray(band) for band in bands], axis=-1)
    return Image.fromarray((128 + total).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", ["none", "square", "centre", "pad", "smart"])
def test_large_jpegs_are_decoded_smaller_with_hardly_a_difference(crop: str, orientation: int) -> None:
    """Large photographs would take three times as long, or would be cropped elsewhere or blurred."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Neither side is a multiple of the factor.
    data = encoded(photograph(327, 219), "JPEG", quality=92, exif=exif)
    params = settings(crop=crop, crop_size=201 if crop == "centre" else None, resolution=10)
    undrafted = encoded(Image.open(BytesIO(data)), "PNG", exif=exif)
    drafted, whole = prepared(data, params), prepared(undrafted, params)
    assert (drafted.width, drafted.height) == (whole.width, whole.height)
    assert drafted.crop.box == pytest.approx(whole.crop.box, abs=16 if crop == "smart" else 0)
    if crop != "smart":
        change = np.abs(pixels_of(data, params).astype(int) - pixels_of(undrafted, params))
        assert 0 < change.mean() < 1, change.mean()


def test_heic_is_read_where_its_plugin_is_installed() -> None:
    """Every iPhone writes HEIC: whole folders would be rejected without saying what to install."""
    if importlib.util.find_spec("pillow_heif") is None:
        assert reason(b"\0\0\0\x18ftypheic" + bytes(99)) == "HEIC, which needs pip install 'ganpipe[heic]'"
        return
    colours = centres(encoded(quarters().resize((64, 64)), "HEIF", quality=95))
    assert np.abs(np.array(colours) - [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]).max() <= 12, colours


def test_a_flipped_bit_in_a_png_is_noticed() -> None:
    """Pillow alone opens such a file without an error, with thousands of wrong pixels."""
    data = encoded(quarters(), compress_level=0)
    start = data.index(b"IDAT") + 4
    packed = data[start : start + int.from_bytes(data[start - 8 : start - 4])]
    rows = bytearray(zlib.decompress(packed))
    rows[1] ^= 4
    # The compressed stream is valid; only the chunk's checksum is wrong.
    flipped = data.replace(packed, zlib.compress(rows, 0))
    assert Image.open(BytesIO(flipped)).tobytes() != quarters().tobytes()
    assert reason(flipped) == "damaged (SyntaxError)"


def test_reasons_are_short_and_the_same_every_time() -> None:
    """Reasons are counted: an address or a count of bytes in them would make each file its own reason."""
    photo = encoded(Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    assert reason(b"") == "empty file"
    assert reason(b"no picture at all") == reason(b"\0" * 99) == "not a picture of a known format"
    assert reason(photo[: len(photo) // 2]) == reason(photo[: len(photo) // 3]) == "truncated"
    assert reason(encoded(quarters(), "PPM")) == "not a picture of a known format"
    assert reason(encoded(Image.new("L", (400, 7)))) == "smaller than preprocess.min_side (8 px) in a side"
    nan = np.full((32, 32), np.nan, np.float32)
    assert reason(encoded(Image.fromarray(nan), "TIFF")) == "has values that are not finite numbers"


@pytest.mark.parametrize("side", [10_001, 20_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    """A file of a few kB would take all memory; Pillow itself refuses only the larger of these two."""
    assert side * side > MAX_PIXELS
    bomb = bytearray(encoded(Image.new("L", (16, 16))))
    header = b"IHDR" + side.to_bytes(4) + side.to_bytes(4) + bytes(bomb[24:29])
    bomb[12:29] = header
    bomb[29:33] = zlib.crc32(header).to_bytes(4)
    assert reason(bytes(bomb)) == "more than 100 megapixels"
