"""`ganpipe score` computes the numbers of the pipeline, whatever files contain the images."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, digits, updated
from PIL import Image
from test_cli import ganpipe

from ganpipe import params
from ganpipe.commands.score import PROTOCOL, protocol, read_images, score
from ganpipe.common.errors import UserError
from ganpipe.evaluate.scores import Metrics
from ganpipe.evaluate.stage import evaluate
from ganpipe.params import Params

IMAGES = digits()[np.random.default_rng(0).permutation(5000)[:160]]
REAL, FAKE, HELD_OUT = IMAGES[:60], IMAGES[60:90], IMAGES[90:120]


def folder(path: Path, images: np.ndarray, kind: str = "png") -> Path:
    """Write images as picture files."""
    path.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(path / f"{i:04}.{kind}")
    return path


def array(path: Path, images: np.ndarray) -> Path:
    """Write images as a .npy."""
    np.save(path, images)
    return path


def scores_of(real: Path, fake: Path, held_out: Path | None = None) -> Metrics:
    """Score with the fastest extractor that is a network."""
    return score(real, fake, held_out, protocol("lite0", None, 32, 2, None), "cpu", as_json=True)


def test_the_protocol_is_that_of_params_yaml() -> None:
    """If it fails, numbers of `score` do not compare with those of the pipeline."""
    assert params.load(ROOT / "params.yaml").evaluate == PROTOCOL


def test_numbers_are_those_of_the_pipeline(
    tmp_path: Path, write_packed: Callable[..., Path], default_params: Params
) -> None:
    """If it fails, the same images have other numbers here, or numbers have other names."""
    write_packed(tmp_path, np.concatenate([HELD_OUT, REAL]), len(HELD_OUT))
    (tmp_path / "stages/sample").mkdir()
    array(tmp_path / "stages/sample/samples.npy", FAKE)
    array(tmp_path / "stages/sample/intervals.npy", np.empty((0, *FAKE.shape), np.uint8))
    (tmp_path / "stages/sample/intervals.json").write_text("[]")
    values = updated(
        default_params, evaluate__extractor="lite0", evaluate__feature_resolution=32, evaluate__seeds=2
    )
    theirs = evaluate(values.evaluate, values.sample, tmp_path, "cpu")
    paths = [
        array(tmp_path / f"{i}.npy", images) for i, images in enumerate((np.sort(REAL, 0), FAKE, HELD_OUT))
    ]
    ours = scores_of(array(paths[0], REAL), paths[1], paths[2])
    assert list(ours) == list(theirs)
    assert ours | {"reference": ""} == theirs | {"reference": ""}


def test_a_search_of_a_part_gives_no_clean_bill(tmp_path: Path) -> None:
    """If it fails, a generator that copies passes, because its originals were not among those searched."""
    images = digits()[np.random.default_rng(1).permutation(5000)[:500]]
    real, held_out, new = (
        array(tmp_path / f"{i}.npy", part) for i, part in enumerate(np.split(images, [300, 400]))
    )
    for fake, searched, words in (
        (new, 150, "unknown: only 150 of 300 training images (50%) were searched"),
        (new, None, "no sign of copies"),
        (
            array(tmp_path / "copies.npy", images[200:300]),
            None,
            "suspicious: distance to the training images",
        ),
    ):
        values = protocol("pixels", None, 32, 1, searched)
        line = str(score(real, fake, held_out, values, "cpu", as_json=True)["memorisation"])
        assert line.startswith(words), line


def test_folders_zips_and_arrays_of_the_same_pictures_score_the_same(tmp_path: Path) -> None:
    """If it fails, the numbers depend on the container: on its order, its names or a second resize."""
    paths = folder(tmp_path / "a", REAL), folder(tmp_path / "b", FAKE, "bmp")
    expected = scores_of(*paths)
    assert expected == scores_of(array(tmp_path / "a.npy", REAL), array(tmp_path / "b.npy", FAKE[..., 0]))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for picture in sorted(paths[0].iterdir(), reverse=True):
            file.write(picture, f"deep/{picture.name}")
    (paths[1] / "notes.txt").write_text("not a picture")
    assert expected == scores_of(tmp_path / "a.zip", paths[1])
    assert expected["reference"] != scores_of(paths[1], paths[0])["reference"]


def test_one_colour_picture_makes_a_set_colour(tmp_path: Path) -> None:
    """If it fails, grey files among colour ones, which are common, are refused or colours are lost."""
    colour = np.repeat(REAL[:4], 3, axis=3)
    colour[0, :14, :, 0] = 200
    path = folder(tmp_path / "mixed", colour[:1])
    for i, image in enumerate(REAL[1:4]):
        Image.fromarray(image[:, :, 0]).save(path / f"grey{i}.png")
    assert np.array_equal(read_images(path), colour)
    assert read_images(folder(tmp_path / "grey", REAL[:4])).shape == (4, 28, 28, 1)


def test_wrong_inputs_are_reported_in_one_line(tmp_path: Path) -> None:
    """If it fails, users meet a traceback, or numbers that mean nothing."""
    good = array(tmp_path / "good.npy", REAL)
    damaged = folder(tmp_path / "damaged", REAL[:3])
    (damaged / "0001.png").write_bytes((damaged / "0001.png").read_bytes()[:-30])
    sizes = folder(tmp_path / "sizes", REAL[:3])
    Image.new("L", (20, 28)).save(sizes / "0002.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.zip").write_text("no zip")
    for fake, words in (
        (tmp_path / "none", r"^--fake: .*none: no such folder or file"),
        (tmp_path / "empty", r"^--fake: .*empty: found no images"),
        (tmp_path / "text.npy", r"text\.npy: not a readable \.npy file"),
        (tmp_path / "text.zip", r"^--fake: .*text\.zip: damaged, or not a folder, zip or tar"),
        (damaged, r"damaged: 0001\.png: truncated; repair or remove it"),
        (sizes, r"sizes: 0002\.png has 20×28 pixels, but earlier images have 28×28"),
        (array(tmp_path / "float.npy", REAL / 255), r"found float64 60×28×28×1, expected images uint8"),
        (array(tmp_path / "nchw.npy", REAL.transpose(0, 3, 1, 2)), r"found uint8 60×1×28×28"),
        (array(tmp_path / "none.npy", REAL[:0]), r"found uint8 0×28×28×1"),
        (
            array(tmp_path / "one.npy", REAL[:1]),
            r"^--sets: 2 sets of at least 2 images cannot be cut from 1 generated",
        ),
        (
            array(tmp_path / "ten.npy", REAL[:10]),
            r"^--sets: 5 neighbours need .*; use more images, fewer sets",
        ),
        (
            array(tmp_path / "small.npy", REAL[:, :20, :20]),
            r"^--fake: .*20×20 px in grey, but those of --real have 28×28 px",
        ),
        (
            array(tmp_path / "rgb.npy", REAL.repeat(3, 3)),
            r"^--fake: .*28×28 px in colour, but those of --real .*in grey",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            scores_of(good, fake)
        assert "\n" not in str(error.value), fake
    with pytest.raises(UserError, match="all 30 real images are equal"):
        scores_of(array(tmp_path / "equal.npy", np.ones_like(REAL)), good)
    for extractor, weights, words in (
        ("vgg", None, "^--extractor: found 'vgg', expected lite0"),
        ("lite0", str(tmp_path / "text.zip"), r"text\.zip: .* are damaged or .*: found sha256 .* reinstall"),
        (
            "inception",
            str(tmp_path / "none"),
            r"^--weights: no weights of inception: .*none does not exist; download weights-",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            score(good, good, None, protocol(extractor, weights, None, 1, None), "cpu", as_json=True)
        assert "\n" not in str(error.value)


def test_json_stands_alone_on_stdout(tmp_path: Path) -> None:
    """If it fails, a script meets words among the JSON, or people must read JSON."""
    words = "score", "--real", str(folder(tmp_path / "a", REAL)), "--fake", str(folder(tmp_path / "b", FAKE))
    (tmp_path / "ganpipe").symlink_to(ROOT / "ganpipe")
    ended = ganpipe(*words, "--feature-resolution", "32", "--json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    numbers = json.loads(ended.stdout)
    assert numbers["n"] == 10 and numbers["kid_lite2_sd"] > 0 and numbers["fd_lite2_floor"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "ganpipe"}, "wrote something"


def test_people_learn_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, people do not learn that floors and copies need held-out images."""
    paths = [array(tmp_path / f"{i}.npy", images) for i, images in enumerate((REAL, FAKE, HELD_OUT))]
    for held_out, floor in ((None, False), (paths[2], True)):
        score(paths[0], paths[1], held_out, protocol("pixels", None, 32, 1, None), "cpu", as_json=False)
        shown = capsys.readouterr().out
        assert shown.startswith("KID ") and ("floor" in shown.splitlines()[0]) == floor
        assert ("they need --held-out" in shown) != floor
