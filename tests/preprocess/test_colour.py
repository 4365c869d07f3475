"""Depth and colour: the right shades whatever mode, profile and transparency a file has."""

import itertools
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from picture_files import encoded, pixels_of, quarters, settings
from PIL import Image, ImageCms

from ganpipe.preprocess.colour import DEPTHS


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparent_parts_are_white(mode: str) -> None:
    """Hidden pixels are arbitrary: icons would be on black, or on colours that were never visible."""
    options: dict[str, Any] = {}
    if mode in ("P", "L"):
        image = Image.new(mode, (32, 32), 0)
        image.paste(1, (16, 0, 32, 32))
        image.putpalette([200, 0, 0, 0, 0, 0]) if mode == "P" else None
        options = {"transparency": 0}
    else:
        image = Image.new("RGB", (32, 32), "black").convert(mode)
        alpha = Image.new("L", (32, 32), 0)
        alpha.paste(255, (16, 0, 32, 32))
        image.putalpha(alpha)
    pixels = pixels_of(encoded(image, **options))
    assert pixels[:, :14].min() == 255
    assert pixels[:, 18:].max() <= 1


@pytest.mark.parametrize(
    ("dtype", "factor", "offset"),
    [
        ("uint16", 257, 0),
        ("uint16", 16, 0),
        ("uint16", 1, 0),
        (">u2", 257, 0),
        ("int32", 257, 0),
        ("int32", 1000, -70_000),
        ("float32", 1 / 255, 0),
        ("float32", 1, 0),
        ("float32", 0.01, -1),
    ],
)
def test_deep_grey_keeps_its_shades(dtype: str, factor: float, offset: float) -> None:
    """Pillow's own conversion clips: 16-bit and float pictures would all be one white or black square."""
    ramp = np.tile(np.linspace(0, 255, 32).round(), (32, 1))
    stored = (ramp * factor + offset).astype(dtype)
    pixels = pixels_of(encoded(Image.fromarray(stored), "TIFF"), settings(channels=1))[:, :, 0]
    assert np.abs(pixels - ramp).max() <= 1


def test_dark_deep_pictures_stay_dark() -> None:
    """Stretching each picture to full contrast would make a night shot a day shot beside its neighbours."""
    half = np.full((32, 32), int(DEPTHS[-1]) // 2, np.uint16)
    assert pixels_of(encoded(Image.fromarray(half)), settings(channels=1)).max() == 127
    black = np.zeros((32, 32), np.float32)
    assert pixels_of(encoded(Image.fromarray(black), "TIFF"), settings(channels=1)).max() == 0


def test_a_bilevel_picture_is_black_and_white() -> None:
    """Reading 1 bit as 0 and 1 would give a black image."""
    pixels = pixels_of(encoded(quarters("L").point(lambda v: v > 100 and 255).convert("1")))
    assert sorted({pixels[8, 24, 0], pixels[24, 24, 0]}) == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_the_background_shows_through(mode: str, channels: int) -> None:
    """Icons would be on a colour that no one chose, or have a fringe of the hidden pixels' colour."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (0, 0, 64, 32))
    params = settings(background=[250, 40, 10], channels=channels)
    pixels = pixels_of(encoded(image.convert(mode)), params).astype(int)
    grey = round(250 * 0.299 + 40 * 0.587 + 10 * 0.114)
    assert np.abs(pixels[20:] - ([250, 40, 10] if channels == 3 else grey)).max() <= 1
    assert np.abs(pixels[:12] - 200).max() <= 1
    # Between the two nothing is darker than both: hidden black does not bleed in.
    assert pixels[:, :, 0].min() >= (200 if channels == 3 else grey) - 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
def test_embedded_profiles_are_brought_to_srgb(mode: str) -> None:
    """Phones' pictures would be dull, print files in wrong colours; the reference is Pillow's conversion."""
    profile = profiles()[mode.removesuffix("A")]
    image = quarters().resize((64, 64), Image.Resampling.BICUBIC).convert(mode)
    kind, params = "TIFF" if mode == "CMYK" else "PNG", settings(resolution=64)
    pixels = pixels_of(encoded(image, kind, icc_profile=profile), params)
    expected = ImageCms.profileToProfile(
        image.convert("RGB") if mode == "RGBA" else image,
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    assert expected is not None and np.ptp(np.asarray(expected)) > 50
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 1
    plain = pixels_of(encoded(image, kind), params)
    assert np.abs(pixels.astype(int) - plain).max() > 20


def test_srgb_and_broken_profiles_change_nothing() -> None:
    """Most pictures embed sRGB itself: converting would change pixels by rounding, and cost time."""
    image = quarters().resize((64, 64), Image.Resampling.BICUBIC)
    plain = pixels_of(encoded(image))
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (own, b"no profile", own[:300], profiles()["CMYK"]):
        np.testing.assert_array_equal(pixels_of(encoded(image, icc_profile=profile)), plain)


def icc(space: bytes, connection: bytes, tag: bytes, data: bytes) -> bytes:
    """Return an ICC profile of one tag."""
    head = bytes(8) + b"\2\x10\0\0prtr" + space + connection + bytes(12) + b"acsp" + bytes(28)
    head += bytes.fromhex("0000f6d6000100000000d32d") + bytes(48)
    body = head + (1).to_bytes(4) + tag + (144).to_bytes(4) + len(data).to_bytes(4) + data
    return len(body).to_bytes(4) + body[4:]


def profiles() -> dict[str, bytes]:
    """Profiles made here: sRGB with red and green exchanged, linear grey, and inks that are all grey."""
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = own.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    ramp = bytes(range(256))
    corners = itertools.product((0, 1), repeat=4)
    lut = b"".join(bytes([255 * (4 - sum(inks)) // 4, 128, 128]) for inks in corners)
    identity = b"".join((65536 * (i % 4 == 0)).to_bytes(4) for i in range(9))
    inks = b"mft1\0\0\0\0\4\3\2\0" + identity + ramp * 4 + lut + ramp * 3
    return {
        "RGB": exchanged,
        "L": icc(b"GRAY", b"XYZ ", b"kTRC", b"curv" + bytes(8)),
        "CMYK": icc(b"CMYK", b"Lab ", b"A2B0", inks),
    }
