"""One picture file: the right pixels whatever its mode and format, or the right reason."""

import errno
import functools
import importlib.util
import itertools
import zipfile
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ganpipe.preprocess.crop import Rejected, Target
from ganpipe.preprocess.decode import DEPTHS, MAX_PIXELS, Member, Prepared, prepare, prepare_member, store

WHOLE = Target("none", None, None, 0.0, 8, 32, 3, (255, 255, 255))
GREY = replace(WHOLE, channels=1)
# Options that make an animation of a picture and a white frame.
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (32, 32), "white")]}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file's bytes."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters(mode: str = "RGB") -> Image.Image:
    """A 32×32 picture of four plain quarters: red, green / blue, black."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16, 0] = pixels[:16, 16:, 1] = pixels[16:, :16, 2] = 255
    return Image.fromarray(pixels).convert(mode)


def centres(prepared: Prepared) -> list[list[int]]:
    """The colours in the middle of the four quarters."""
    return [prepared.pixels[y, x].tolist() for y in (8, 24) for x in (8, 24)]


def reason(data: bytes, target: Target = WHOLE) -> str:
    """Why a file is rejected."""
    with pytest.raises(Rejected) as caught:
        prepare(data, target)
    return str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_a_plain_crop_and_lanczos(channels: int) -> None:
    """Every number downstream rests on these pixels; the reference is Pillow, a step at a time."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    found = prepare(
        encoded(Image.fromarray(noise)), replace(WHOLE, crop="square", resolution=24, channels=channels)
    )
    mode = "L" if channels == 1 else "RGB"
    side = Image.fromarray(noise[:, 10:60]).convert(mode).resize((24, 24), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(found.pixels, np.asarray(side).reshape(24, 24, channels))
    assert (found.width, found.height, found.crop.box, found.scale) == (71, 50, (10, 0, 60, 50), 24 / 50)


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
    found = prepare(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif), WHOLE)
    assert (found.width, found.height) == (32, 48)
    assert centres(found) == centres(prepare(encoded(quarters()), WHOLE))


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
    """A mode that is read wrong trains on inverted, grey or other frames' pictures, in silence."""
    found = centres(prepare(encoded(quarters(mode), kind, **options), WHOLE))
    expected = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]])
    assert np.abs(np.array(found) - expected).max() <= 4, found


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_what_is_transparent_is_white(mode: str) -> None:
    """Hidden pixels are arbitrary: icons would stand on black, or on colours that no one has ever seen."""
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
    found = prepare(encoded(image, **options), WHOLE).pixels
    assert found[:, :14].min() == 255
    assert found[:, 18:].max() <= 1


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
    found = prepare(encoded(Image.fromarray(stored), "TIFF"), GREY).pixels[:, :, 0]
    assert np.abs(found - ramp).max() <= 1


def test_dark_deep_pictures_stay_dark() -> None:
    """Stretching each picture to full contrast would make a night shot a day shot beside its neighbours."""
    half = np.full((32, 32), int(DEPTHS[-1]) // 2, np.uint16)
    assert prepare(encoded(Image.fromarray(half)), GREY).pixels.max() == 127
    black = np.zeros((32, 32), np.float32)
    assert prepare(encoded(Image.fromarray(black), "TIFF"), GREY).pixels.max() == 0


def test_a_bilevel_picture_is_black_and_white() -> None:
    """Reading 1 bit as 0 and 1 would give a black image."""
    found = prepare(encoded(quarters("L").point(lambda v: v > 100 and 255).convert("1")), WHOLE).pixels
    assert sorted({found[8, 24, 0], found[24, 24, 0]}) == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_the_background_shows_through(mode: str, channels: int) -> None:
    """A set of icons would stand on a colour that no one chose, or with a fringe of what is hidden."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (0, 0, 64, 32))
    target = replace(WHOLE, background=(250, 40, 10), channels=channels)
    found = prepare(encoded(image.convert(mode)), target).pixels.astype(int)
    grey = round(250 * 0.299 + 40 * 0.587 + 10 * 0.114)
    assert np.abs(found[20:] - ([250, 40, 10] if channels == 3 else grey)).max() <= 1
    assert np.abs(found[:12] - 200).max() <= 1
    # Between the two nothing is darker than both: hidden black does not bleed in.
    assert found[:, :, 0].min() >= (200 if channels == 3 else grey) - 1


def test_a_padded_picture_is_whole_and_centred() -> None:
    """A wide picture would be squeezed or cut, or stand on black bars."""
    image = Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (32, 1))).convert("RGB")
    for data in (
        encoded(image),
        encoded(image.convert("RGBA")),
        encoded(image.transpose(Image.Transpose.ROTATE_90)),
    ):
        found = prepare(data, replace(WHOLE, crop="pad", resolution=48, background=(9, 99, 199))).pixels
        tall = prepare(data, WHOLE).height == 96
        found = np.rot90(found, -1) if tall else found
        assert (found[:16] == (9, 99, 199)).all() and (found[32:] == (9, 99, 199)).all()
        inner = image.resize((48, 16), Image.Resampling.LANCZOS)
        assert np.abs(found[16:32].astype(int) - np.asarray(inner)).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
def test_embedded_profiles_are_brought_to_srgb(mode: str) -> None:
    """Phones' pictures would train dull, and print files in other colours; the reference is Pillow's own."""
    profile = profiles()[mode.removesuffix("A")]
    image = quarters().resize((64, 64), Image.Resampling.BICUBIC).convert(mode)
    kind, target = "TIFF" if mode == "CMYK" else "PNG", replace(WHOLE, resolution=64)
    found = prepare(encoded(image, kind, icc_profile=profile), target).pixels
    expected = ImageCms.profileToProfile(
        image.convert("RGB") if mode == "RGBA" else image,
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    assert expected is not None and np.ptp(np.asarray(expected)) > 50
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1
    plain = prepare(encoded(image, kind), target).pixels
    assert np.abs(found.astype(int) - plain).max() > 20


def test_srgb_and_broken_profiles_change_nothing() -> None:
    """Most pictures carry sRGB's own: rounding through it would change bytes for nothing, and cost time."""
    image = quarters().resize((64, 64), Image.Resampling.BICUBIC)
    plain = prepare(encoded(image), WHOLE).pixels
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (own, b"no profile", own[:300], profiles()["CMYK"]):
        np.testing.assert_array_equal(prepare(encoded(image, icc_profile=profile), WHOLE).pixels, plain)


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
def test_the_jpeg_decoder_shrinks_where_it_hardly_shows(crop: str, orientation: int) -> None:
    """Large photographs would take three times as long; or be cut elsewhere, or blurred, for speed."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Neither side is a multiple of the factor.
    data = encoded(photograph(327, 219), "JPEG", quality=92, exif=exif)
    target = replace(WHOLE, crop=crop, crop_size=201 if crop == "centre" else None, resolution=10)
    drafted = prepare(data, target)
    whole = prepare(encoded(Image.open(BytesIO(data)), "PNG", exif=exif), target)
    assert (drafted.width, drafted.height) == (whole.width, whole.height)
    assert drafted.crop.box == pytest.approx(whole.crop.box, abs=16 if crop == "smart" else 0)
    if crop != "smart":
        change = np.abs(drafted.pixels.astype(int) - whole.pixels)
        assert 0 < change.mean() < 1, change.mean()


def test_heic_is_read_where_its_plugin_is_or_says_what_to_install() -> None:
    """Every iPhone writes it: whole folders would be "not a picture"."""
    if importlib.util.find_spec("pillow_heif") is None:
        assert reason(b"\0\0\0\x18ftypheic" + bytes(99)) == "HEIC, which needs pip install 'ganpipe[heic]'"
        return
    found = centres(prepare(encoded(quarters().resize((64, 64)), "HEIF", quality=95), WHOLE))
    assert np.abs(np.array(found) - [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]).max() <= 12, found


def test_a_flipped_bit_in_a_png_is_noticed() -> None:
    """Pillow alone opens such a file in silence with thousands of wrong pixels."""
    data = encoded(quarters(), compress_level=0)
    start = data.index(b"IDAT") + 4
    packed = data[start : start + int.from_bytes(data[start - 8 : start - 4])]
    rows = bytearray(zlib.decompress(packed))
    rows[1] ^= 4
    # The compressed stream is whole; only the chunk's checksum knows.
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_no_image(tmp_path: Path) -> None:
    """A row of zeros would be trained on as a black picture."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", encoded(quarters()))
        entry = archive.infolist()[0]
    member = Member(0, archive.start_dir - entry.file_size, entry.file_size, entry.CRC, None)
    made = prepare_member(member, tmp_path / "a.zip", WHOLE)
    rows = tmp_path / "rows"
    rows.touch()
    assert isinstance(store([made], rows, 100)[0], tuple)
    assert rows.stat().st_size == 100 + prepare(encoded(quarters()), WHOLE).pixels.nbytes
    with pytest.raises(OSError) as caught:
        store([made], Path("/dev/full"), 0)
    assert caught.value.errno == errno.ENOSPC


def test_images_are_stored_in_their_rows(tmp_path: Path) -> None:
    """An image in the row of a rejected one would bear another's name."""
    made = [(row, prepare(encoded(quarters().rotate(90 * row)), WHOLE)) for row in (0, 1, 3)]
    rows = tmp_path / "rows"
    rows.write_bytes(b"head" + bytes(4 * made[0][1].pixels.nbytes))
    found = store([*made[:2], "no picture", *made[2:]], rows, 4)
    pixels = np.frombuffer(rows.read_bytes(), np.uint8, offset=4).reshape(4, 32, 32, 3)
    for row, image in made:
        np.testing.assert_array_equal(pixels[row], image.pixels)
        assert found[row][:4] == (32, 32, 0, 0)
    assert not pixels[2].any() and found[2] == "no picture"
