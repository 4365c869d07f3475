"""Any pictures against any others: the same numbers as in the pipeline, whatever the pictures are kept in."""

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
from ganpipe.commands import score
from ganpipe.common.errors import UserError
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


def judged(real: Path, fake: Path, held_out: Path | None = None, sets: int = 2) -> score.Metrics:
    """Score with the quickest extractor that is a network."""
    return score.score(real, fake, held_out, "lite0", None, 32, sets, "cpu", True)


def test_the_protocol_is_that_of_params_yaml() -> None:
    """Numbers of `score` would not compare with those of the pipeline."""
    assert params.load(ROOT / "params.yaml").evaluate == score.PROTOCOL


def test_numbers_are_those_of_the_pipeline(
    tmp_path: Path, write_packed: Callable[..., Path], default_params: Params
) -> None:
    """The same images would get other numbers here, or names that no script knows."""
    write_packed(tmp_path, np.concatenate([HELD_OUT, REAL]), len(HELD_OUT))
    (tmp_path / "stages/sample").mkdir()
    array(tmp_path / "stages/sample/samples.npy", FAKE)
    array(tmp_path / "stages/sample/intervals.npy", np.empty((0, *FAKE.shape), np.uint8))
    (tmp_path / "stages/sample/intervals.json").write_text("[]")
    values = updated(default_params, evaluate__feature_resolution=32, evaluate__seeds=2)
    theirs = evaluate(values.evaluate, values.sample, tmp_path, "cpu")
    paths = [
        array(tmp_path / f"{i}.npy", images) for i, images in enumerate((np.sort(REAL, 0), FAKE, HELD_OUT))
    ]
    ours = judged(array(paths[0], REAL), paths[1], paths[2])
    assert list(ours) == list(theirs)
    assert ours | {"reference": ""} == theirs | {"reference": ""}


def test_folders_zips_and_arrays_of_the_same_pictures_score_the_same(tmp_path: Path) -> None:
    """The container would decide: by its order, its names or a second resize."""
    paths = folder(tmp_path / "a", REAL), folder(tmp_path / "b", FAKE, "bmp")
    expected = judged(*paths)
    assert expected == judged(array(tmp_path / "a.npy", REAL), array(tmp_path / "b.npy", FAKE[..., 0]))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for picture in sorted(paths[0].iterdir(), reverse=True):
            file.write(picture, f"deep/{picture.name}")
    (paths[1] / "notes.txt").write_text("not a picture")
    assert expected == judged(tmp_path / "a.zip", paths[1])
    assert expected["reference"] != judged(paths[1], paths[0])["reference"]


def test_one_colour_picture_makes_a_set_colour(tmp_path: Path) -> None:
    """Grey files among colour ones, which every collection has, would be refused or the colours lost."""
    colour = np.repeat(REAL[:4], 3, axis=3)
    colour[0, :14, :, 0] = 200
    path = folder(tmp_path / "mixed", colour[:1])
    for i, image in enumerate(REAL[1:4]):
        Image.fromarray(image[:, :, 0]).save(path / f"grey{i}.png")
    assert np.array_equal(score.opened(path).images, colour)
    assert score.opened(folder(tmp_path / "grey", REAL[:4])).images.shape == (4, 28, 28, 1)


def test_wrong_inputs_get_one_line(tmp_path: Path) -> None:
    """A user would meet a traceback, or numbers that mean nothing."""
    good = array(tmp_path / "good.npy", REAL)
    damaged = folder(tmp_path / "damaged", REAL[:3])
    (damaged / "0001.png").write_bytes((damaged / "0001.png").read_bytes()[:-30])
    sizes = folder(tmp_path / "sizes", REAL[:3])
    Image.new("L", (20, 28)).save(sizes / "0002.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.zip").write_text("no zip")
    for fake, words in (
        (tmp_path / "none", r"none: no such folder or file"),
        (tmp_path / "empty", r"empty: holds no pictures"),
        (tmp_path / "text.npy", r"text\.npy: no \.npy that can be read"),
        (tmp_path / "text.zip", r"text\.zip is no folder, zip or tar that can be read"),
        (damaged, r"damaged: 0001\.png: truncated; mend it or take it out"),
        (sizes, r"sizes: 0002\.png has 20×28 pixels, those before it 28×28"),
        (array(tmp_path / "float.npy", REAL / 255), r"expected images uint8 .* found float64 60×28×28×1"),
        (array(tmp_path / "nchw.npy", REAL.transpose(0, 3, 1, 2)), r"found uint8 60×1×28×28"),
        (array(tmp_path / "none.npy", REAL[:0]), r"found uint8 0×28×28×1"),
        (
            array(tmp_path / "one.npy", REAL[:1]),
            r"^--sets: 2 sets of at least 2 images cannot be cut from 1 generated",
        ),
        (array(tmp_path / "ten.npy", REAL[:10]), r"^5 neighbours need .* use fewer --sets or more pictures$"),
        (array(tmp_path / "small.npy", REAL[:, :20, :20]), r"--fake: .*20×20 px in grey, --real.*28×28 px"),
        (array(tmp_path / "rgb.npy", REAL.repeat(3, 3)), r"--fake: .*28×28 px in colour, --real: .*in grey"),
    ):
        with pytest.raises(UserError, match=words) as error:
            judged(good, fake)
        assert "\n" not in str(error.value), fake
    with pytest.raises(UserError, match="30 real images are alike to lite0"):
        judged(array(tmp_path / "equal.npy", np.ones_like(REAL)), good)
    for extractor, weights, words in (
        ("vgg", None, "^--extractor: found 'vgg', known are lite0"),
        ("lite0", str(tmp_path / "text.zip"), r"text\.zip: .* weights are damaged: sha256 .* reinstall"),
        (
            "inception",
            str(tmp_path / "none"),
            r"^--weights: the weights of inception are not there .*none.*; get weights-",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            score.score(good, good, None, extractor, weights, None, 1, "cpu", True)
        assert "\n" not in str(error.value)


def test_json_stands_alone_on_stdout(tmp_path: Path) -> None:
    """A script that reads it would stumble over words, or a person have to read JSON."""
    words = "score", "--real", str(folder(tmp_path / "a", REAL)), "--fake", str(folder(tmp_path / "b", FAKE))
    (tmp_path / "ganpipe").symlink_to(ROOT / "ganpipe")
    ended = ganpipe(*words, "--feature-resolution", "32", "--json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    numbers = json.loads(ended.stdout)
    assert numbers["n"] == 10 and numbers["kid_lite0_sd"] > 0 and numbers["fd_lite0_floor"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "ganpipe"}, "wrote something"


def test_people_are_told_what_the_numbers_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without held-out pictures nobody knows what a good number is, or whether pictures are copies."""
    paths = [array(tmp_path / f"{i}.npy", images) for i, images in enumerate((REAL, FAKE, HELD_OUT))]
    for held_out, floor in ((None, False), (paths[2], True)):
        score.score(paths[0], paths[1], held_out, "pixels", None, 32, 1, "cpu", False)
        shown = capsys.readouterr().out
        assert shown.startswith("KID ") and ("floor" in shown.splitlines()[0]) == floor
        assert ("without --held-out" in shown) != floor
