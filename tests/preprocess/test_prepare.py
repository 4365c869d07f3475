"""Training images: the right pixels, in the right rows."""

import errno
import zipfile
from pathlib import Path

import numpy as np
import pytest
from picture_files import WHOLE, encoded, pixels_of, prepared, quarters, settings
from PIL import Image

from ganpipe.preprocess.prepare import Member, pack


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_a_plain_crop_and_lanczos(channels: int) -> None:
    """Every later number depends on these pixels; the reference is Pillow, one step at a time."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    params = settings(crop="square", resolution=24, channels=channels)
    image = prepared(encoded(Image.fromarray(noise)), params)
    mode = "L" if channels == 1 else "RGB"
    side = Image.fromarray(noise[:, 10:60]).convert(mode).resize((24, 24), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.asarray(image.image), np.asarray(side))
    assert (image.width, image.height, image.crop.box, image.scale) == (71, 50, (10, 0, 60, 50), 24 / 50)


def test_a_padded_picture_is_whole_and_centred() -> None:
    """A wide picture would be squeezed or cut, or have black bars."""
    image = Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (32, 1))).convert("RGB")
    for data in (
        encoded(image),
        encoded(image.convert("RGBA")),
        encoded(image.transpose(Image.Transpose.ROTATE_90)),
    ):
        pixels = pixels_of(data, settings(crop="pad", resolution=48, background=[9, 99, 199]))
        pixels = np.rot90(pixels, -1) if prepared(data).height == 96 else pixels
        assert (pixels[:16] == (9, 99, 199)).all() and (pixels[32:] == (9, 99, 199)).all()
        inner = image.resize((48, 16), Image.Resampling.LANCZOS)
        assert np.abs(pixels[16:32].astype(int) - np.asarray(inner)).max() <= 1


def members(path: Path, files: list[bytes]) -> list[Member]:
    """Write an archive as fetch does, and return its members."""
    with zipfile.ZipFile(path, "w") as archive:
        entries = []
        for row, data in enumerate(files):
            archive.writestr(str(row), data)
            entry = archive.infolist()[row]
            entries.append(Member(row, archive.start_dir - entry.file_size, entry.file_size, entry.CRC, None))
    return entries


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """A row of zeros would be trained on as a black picture."""
    member = members(tmp_path / "a.zip", [encoded(quarters())])[0]
    rows = tmp_path / "rows"
    rows.touch()
    assert isinstance(pack(member, tmp_path / "a.zip", WHOLE, rows, 100), tuple)
    assert rows.stat().st_size == 100 + pixels_of(encoded(quarters())).nbytes
    with pytest.raises(OSError) as caught:
        pack(member, tmp_path / "a.zip", WHOLE, Path("/dev/full"), 0)
    assert caught.value.errno == errno.ENOSPC


def test_images_are_stored_in_their_rows(tmp_path: Path) -> None:
    """An image in the row of a rejected file would have another file's name."""
    files = [encoded(quarters().rotate(90 * row)) for row in range(4)]
    files[2] = b"no picture"
    rows = tmp_path / "rows"
    rows.write_bytes(b"head" + bytes(4 * 32 * 32 * 3))
    packed = members(tmp_path / "a.zip", files)
    facts = [pack(member, tmp_path / "a.zip", WHOLE, rows, 4) for member in packed]
    pixels = np.frombuffer(rows.read_bytes(), np.uint8, offset=4).reshape(4, 32, 32, 3)
    for row in (0, 1, 3):
        np.testing.assert_array_equal(pixels[row], pixels_of(files[row]))
        assert facts[row][:4] == (32, 32, 0, 0)
    assert not pixels[2].any() and facts[2] == "not a picture of a known format"
