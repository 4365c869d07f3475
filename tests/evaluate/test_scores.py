"""The numbers of a comparison: each changes as it should when images are degraded in a known way."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from conftest import digit_labels, digits, updated
from PIL import Image, ImageFilter

from ganpipe.common.errors import UserError
from ganpipe.evaluate.extraction import Features
from ganpipe.evaluate.scores import Metrics, distance_names, score_features
from ganpipe.metrics import extractors, lite0
from ganpipe.params import Evaluate, Params

N = 500


def without_places(train: np.ndarray, fake: np.ndarray, held_out: np.ndarray) -> Features:
    """Return features as of a network that keeps no places, and images that are all of one contrast."""
    details = [np.ones((len(part), 1), np.float32) for part in (train, fake, held_out)]
    return Features(train, [fake], held_out, Features(details[0], [details[1]], details[2]))


def changed(change: Callable[[Image.Image], Image.Image], images: np.ndarray) -> np.ndarray:
    """Change images one by one with Pillow."""
    return np.stack([np.asarray(change(Image.fromarray(image[:, :, 0]))) for image in images])[..., None]


def jpeg(image: Image.Image) -> Image.Image:
    """Save and open again at quality 30."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("L")


@pytest.fixture(scope="module")
def table(default_params: Params) -> dict[str, Metrics]:
    """How 500 real images are changed → their scores as generated images."""
    random = np.random.default_rng(0)
    order = random.permutation(5000)
    images, labels = digits()[order], digit_labels()[order]
    train, held_out, fresh = images[:1000], images[1000 : 1000 + N], images[1500 : 1500 + N]
    category = images[1500:][labels[1500:] == 3][: N // 2].repeat(2, axis=0)
    noise = np.clip(fresh + random.normal(0, 25, fresh.shape), 0, 255).astype(np.uint8)
    rows = {
        "held-out real": fresh,
        "blur": changed(lambda image: image.filter(ImageFilter.GaussianBlur(1)), fresh),
        "noise": noise,
        "JPEG": changed(jpeg, fresh),
        "one category": category,
        "20 modes": fresh[:20].repeat(N // 20, axis=0),
        "copies": train[:N],
        "copies, not of the reference": train[N:],
    }
    extractor = extractors.build("lite0", 32, None)

    def extract(part: np.ndarray) -> np.ndarray:
        return lite0.extract(extractor, part, extractors.batch_size(extractor), "cpu")

    real, beyond = extract(train), extract(held_out)
    params = updated(default_params, evaluate__extractor="lite0", evaluate__feature_resolution=32).evaluate
    return {
        name: score_features(without_places(real, extract(part), beyond), params)
        for name, part in rows.items()
    }


def value(table: dict[str, Metrics], row: str, name: str) -> float:
    """Read a number of the table."""
    number = table[row][name]
    assert isinstance(number, float)
    return number


def test_every_number_moves_the_way_it_should(table: dict[str, Metrics]) -> None:
    """If it fails, a number misses the defect that it should show, or changes in the wrong direction."""
    for row in ("blur", "noise", "JPEG", "one category", "20 modes"):
        for name in ("kid_lite0", "fd_lite0", "c2st_auc"):
            chance = abs(value(table, row, f"{name}_floor") - value(table, "held-out real", name))
            assert value(table, row, name) > 1.2 * value(table, "held-out real", name) + 4 * chance, (
                row,
                name,
            )
        assert value(table, row, "coverage") < 0.8 * value(table, "held-out real", "coverage"), row
    for row in ("blur", "noise", "JPEG"):
        for name in ("precision", "density"):
            assert value(table, row, name) < 0.9 * value(table, "held-out real", name), (row, name)
    for row in ("one category", "20 modes"):
        assert value(table, row, "precision") > 0.9 * value(table, "held-out real", "precision"), row
        assert value(table, row, "recall") < 0.4, row
    assert value(table, "one category", "diversity") < 0.85 < value(table, "held-out real", "diversity")
    assert value(table, "held-out real", "fd_lite0_ratio") == pytest.approx(1, abs=0.2)
    assert value(table, "held-out real", "c2st_auc") == pytest.approx(0.5, abs=0.06)
    assert value(table, "held-out real", "nn_ratio") == pytest.approx(1, abs=0.2)


def test_only_the_memorisation_numbers_expose_copies(table: dict[str, Metrics]) -> None:
    """If it fails, a model that memorises wins, or one that does not is accused."""
    assert value(table, "copies", "fd_lite0") == 0 and value(table, "copies", "precision") == 1
    assert value(table, "copies, not of the reference", "fd_lite0_ratio") == pytest.approx(1, abs=0.2)
    for row, numbers in table.items():
        copied = row.startswith("copies")
        assert str(numbers["memorisation"]).startswith("suspicious") == copied, (row, numbers)
        assert (numbers["nn_ratio"] == numbers["authenticity"] == 0) == copied, row


def test_the_layout_is_seen(default_params: Params) -> None:
    """If it fails, `compare` ranks images whose parts are in the wrong places as high as right ones."""
    images = digits()[np.random.default_rng(0).permutation(5000)[:90]]
    real, held_out, new = np.split(np.pad(images, ((0, 0), (0, 28), (0, 28), (0, 0))), 3)
    extractor = extractors.build("lite0", 128, None)
    params = updated(default_params, evaluate__extractor="lite0", evaluate__kid_subsets=9).evaluate

    def features(fake: np.ndarray) -> Features:
        both = [
            np.split(lite0.extract(extractors.Seen(extractor), part, 50, "cpu"), [extractor.dimension], 1)
            for part in (real, fake, held_out)
        ]
        (a, b, c), (x, y, z) = zip(*both, strict=True)
        return Features(a, [b], c, Features(x, [y], z))

    moved = features(np.roll(new, 28, (1, 2)))  # from the upper left to the lower right quarter
    scores = score_features(moved, params)
    pooled, layout = (float(scores[name] or 0) for name in ("kid_lite0", "layout_kid_lite0"))
    assert layout > 2 * pooled and layout > 20 * abs(float(scores["layout_kid_lite0_floor"] or 0)), scores
    mmd, floor = (float(scores[f"layout_mmd_lite0{end}"] or 0) for end in ("", "_floor"))
    assert 0.05 < mmd < 2 and mmd > 20 * abs(floor), scores
    assert (scores["ranked_by"], scores["degenerate"]) == ("layout_mmd_lite0", None)
    by_kid = params.model_copy(update={"rank_by": "kid"})
    assert score_features(moved, by_kid)["ranked_by"] == "kid_lite0"
    pooled_only = without_places(moved.train, moved.fakes[0], moved.held_out)
    assert score_features(pooled_only, params)["ranked_by"] == "kid_lite0"


def test_names_keep_the_word_fid_for_inception() -> None:
    """If it fails, numbers of other networks are compared with published FIDs."""
    layouts = ("layout_kid_{}", "layout_mmd_{}")
    for network, fd_name in (("inception", "fid"), ("lite0", "fd_lite0")):
        names = (f"kid_{network}", fd_name, *(name.format(network) for name in layouts))
        assert distance_names(network) == names


@pytest.mark.parametrize(
    ("real", "fake", "words"),
    [("equal", "fine", "all 500 real images are equal"), ("fine", "nan", "not finite")],
)
def test_features_that_cannot_be_compared_are_reported_in_one_line(
    default_params: Params, real: str, fake: str, words: str
) -> None:
    """If it fails, NaN or a constant pass for features, or end in a traceback of numpy."""
    fine = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
    sets = {"fine": fine, "equal": np.ones_like(fine), "nan": np.where(fine > 2, np.nan, fine)}
    params: Evaluate = default_params.evaluate
    with pytest.raises(UserError, match=words) as error:
        score_features(without_places(sets[real], sets[fake], fine[:0]), params)
    assert "\n" not in str(error.value)


def test_a_collapsed_generator_is_scored(default_params: Params) -> None:
    """If it fails, the worst run of a sweep has no numbers."""
    real = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    scores = score_features(without_places(real, np.ones((60, 4)), real[:0]), default_params.evaluate)
    assert (scores["diversity"], scores["recall"]) == (0, 0) and scores["c2st_auc"] == pytest.approx(
        1, abs=0.1
    )
    assert scores["fd_lite2_floor"] is None and str(scores["memorisation"]).startswith("unknown: 0 held-out")
