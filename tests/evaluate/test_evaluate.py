"""The evaluate stage."""

import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import digits
from PIL import Image

from ganpipe import models
from ganpipe.common.errors import UserError
from ganpipe.evaluate import figures, stage
from ganpipe.evaluate.scores import Metrics
from ganpipe.metrics import extractors, lite0, manifold
from ganpipe.metrics.copies import neighbours
from ganpipe.metrics.fd import fd
from ganpipe.metrics.kid import gaussian_mmd, kid
from ganpipe.models.generator import images_of, save_generator, z_of_seeds
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Evaluate, Params, Sample

PARAMS = Evaluate(
    extractor="lite0",
    second_extractor=None,
    weights=None,
    feature_resolution=32,
    seeds=1,
    snapshots=False,
    search_images=None,
    rank_by="layout_mmd",
    neighbours=3,
    kid_subsets=4,
    kid_subset_size=100,
    seed=0,
)
SAMPLE = Sample(count=20, seed=3, z_scale=0.9, intervals=[], traversal_elements=None)
# 8 held out, 16 to train on; another 20 as if generated.
IMAGES, GENERATED = digits()[:4800:200], digits()[100:4100:200]

Checkout = Callable[..., Path]


def evaluate(params: Evaluate, root: Path, device: str) -> Metrics:
    """Run the stage on the sample section that all tests share."""
    return stage.evaluate(params, SAMPLE, root, device)


@pytest.fixture(autouse=True)
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plot of features, half of a small evaluation's time; test_figures.py draws it."""
    monkeypatch.setattr(figures, "features_picture", lambda features: Image.new("L", (8, 8)))


@pytest.fixture(scope="module")
def built() -> Callable[..., Any]:
    """Return `extractors.build` with a memory: building is a fifth of a small evaluation's time."""
    return functools.cache(extractors.build)


@pytest.fixture(autouse=True)
def build_once(monkeypatch: pytest.MonkeyPatch, built: Callable[..., Any]) -> None:
    """Share each network among these tests; test_extractors.py builds them."""
    monkeypatch.setattr(extractors, "build", built)


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were given to each call of the extractor so far."""
    calls: list[int] = []
    extract = lite0.extract

    def count(extractor: Any, images: np.ndarray, *arguments: Any) -> np.ndarray:
        calls.append(len(arguments[-1]))
        return extract(extractor, images, *arguments)

    monkeypatch.setattr(lite0, "extract", count)
    return calls


@pytest.fixture
def checkout(tmp_path: Path, write_packed: Callable[..., Path]) -> Checkout:
    """Return a function that makes a checkout with the files of the earlier stages."""

    def make(
        images: np.ndarray,
        held_out: int,
        generated: np.ndarray,
        intervals: Sequence[tuple[float, np.ndarray]] = (),
    ) -> Path:
        write_packed(tmp_path, images, held_out)
        (tmp_path / "stages/sample").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "stages/sample/samples.npy", generated)
        several = np.empty((len(intervals), *generated.shape), np.uint8)
        for i, (_, part) in enumerate(intervals):
            several[i] = part
        np.save(tmp_path / "stages/sample/intervals.npy", several)
        described = [{"factor": factor, "z": f"[-{factor}, {factor}]"} for factor, _ in intervals]
        (tmp_path / "stages/sample/intervals.json").write_text(json.dumps(described))
        return tmp_path

    return make


def numbers(root: Path) -> Metrics:
    """Read metrics.json."""
    read: Metrics = json.loads((root / "stages/evaluate/metrics.json").read_text())
    return read


def number(metrics: Metrics, name: str) -> float:
    """Read a metric that is a number."""
    value = metrics[name]
    assert isinstance(value, float)
    return value


def test_numbers_are_the_metrics_of_the_right_images(checkout: Checkout) -> None:
    """If it fails, images or sets are exchanged: every number is plausible and wrong."""
    root = checkout(IMAGES, 8, GENERATED[:16])
    result = evaluate(PARAMS, root, "cpu")
    extractor = lite0.Lite0(32)
    real, fake = (lite0.extract(extractor, x, 5, "cpu") for x in (IMAGES[8:], GENERATED[:16]))
    expected = {
        "kid_lite0": kid(real, fake, 1, 16, 0)[0],
        "fd_lite0": fd(real, fake),
        **manifold.overlap(manifold.balls(real, 3), manifold.balls(fake, 3)),
        "diversity": manifold.balls(fake, 1).spread / manifold.balls(real, 1).spread,
        "authenticity": neighbours(fake, real).authentic.mean(),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert result["n"] == 16
    assert result == numbers(root)


def test_the_second_network_scores_the_same_images(checkout: Checkout) -> None:
    """If it fails, a generator that pleases its training's network has no independent number beside it."""
    params = PARAMS.model_copy(update={"feature_resolution": 64})
    fakes = 255 - GENERATED[:12]  # black on white, so that both KIDs are above 0
    root = checkout(IMAGES, 12, fakes)
    without = evaluate(params, root, "cpu")
    result = evaluate(params.model_copy(update={"second_extractor": "lite2"}), root, "cpu")
    # One subset has all 12 images, in whatever order.
    images = IMAGES[12:], fakes, IMAGES[:12]
    features = [lite0.extract(extractors.Seen(lite0.Lite2(64)), part, 12, "cpu") for part in images]
    for name, columns in (("kid_lite2", slice(0, 1280)), ("layout_kid_lite2", slice(1281, None))):
        real, fake, held_out = (part[:, columns] for part in features)
        assert result[name] == pytest.approx(kid(real, fake, 1, 12, 0)[0], rel=1e-4)
        assert result[f"{name}_floor"] == pytest.approx(kid(real, held_out, 1, 12, 0)[0], rel=1e-3, abs=1e-5)
    assert result["layout_mmd_lite2"] == pytest.approx(gaussian_mmd(real, fake), rel=1e-4)  # of the layouts
    quotient = number(result, "kid_lite0") / number(result, "kid_lite2")
    assert result["kid_quotient"] == pytest.approx(quotient, rel=1e-3)
    assert without.items() <= result.items() and "kid_lite2" not in without
    assert evaluate(params.model_copy(update={"second_extractor": "lite0"}), root, "cpu") == without


def test_patches_are_compared_with_the_reference_and_have_a_floor(checkout: Checkout) -> None:
    """If it fails, the distance of patches is of other images than the numbers beside it."""
    result = evaluate(PARAMS, checkout(IMAGES, 12, IMAGES[:12]), "cpu")
    assert result["swd"] == result["swd_28"] == pytest.approx(number(result, "swd_floor"), rel=0.1)
    copies = evaluate(PARAMS, checkout(IMAGES, 12, IMAGES[12:]), "cpu")
    assert 0 < number(copies, "swd") < number(result, "swd")  # the same images, but other patches


def test_the_floor_is_what_held_out_images_score(checkout: Checkout) -> None:
    """If it fails, the floor has other images, N or reference than the number beside it."""
    result = evaluate(PARAMS, checkout(IMAGES, 12, IMAGES[:12]), "cpu")
    assert result["n"] == 12
    assert result["fd_lite0"] == result["fd_lite0_floor"] != 0
    assert result["kid_lite0"] == pytest.approx(result["kid_lite0_floor"], rel=1e-4)


def test_copies_of_the_training_images_are_at_distance_zero(checkout: Checkout) -> None:
    """If it fails, the reference is not the training images."""
    result = evaluate(PARAMS, checkout(IMAGES, 8, IMAGES[8:]), "cpu")
    assert result["fd_lite0"] == pytest.approx(0, abs=1e-3)
    assert (result["precision"], result["recall"], result["coverage"]) == (1, 1, 1)


def test_too_few_held_out_images_give_no_floor_and_a_message(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, a floor has another N than the numbers, or is missing without a reason."""
    result = evaluate(PARAMS, checkout(IMAGES, 8, GENERATED[:9]), "cpu")
    assert result["fd_lite0_floor"] is None and result["kid_lite0_floor"] is None
    assert numbers(checkout(IMAGES, 8, GENERATED[:9]))["fd_lite0_floor"] is None
    assert "needs 9 held-out images and there are 8; set sample.count to at most 8" in capsys.readouterr().out
    result = evaluate(PARAMS, checkout(IMAGES, 0, GENERATED[:9]), "cpu")
    assert "there are 0; raise preprocess.held_out" in capsys.readouterr().out
    assert evaluate(PARAMS, checkout(IMAGES, 8, GENERATED[:8]), "cpu")["fd_lite0_floor"] is not None
    assert "No floor" not in capsys.readouterr().out


def test_both_sets_have_equal_n_and_are_chosen_by_the_seed(checkout: Checkout) -> None:
    """If it fails, the run with more images wins, because FD falls with N."""
    more_generated = evaluate(PARAMS, checkout(IMAGES, 8, GENERATED), "cpu")
    assert more_generated["n"] == 16
    assert evaluate(PARAMS, checkout(IMAGES, 8, GENERATED), "cpu") == more_generated
    first, second = (
        evaluate(PARAMS.model_copy(update={"seed": seed}), checkout(IMAGES, 8, GENERATED[:12]), "cpu")
        for seed in (0, 1)
    )
    assert first["n"] == second["n"] == 12 and first["fd_lite0"] != second["fd_lite0"]
    assert evaluate(PARAMS, checkout(IMAGES, 0, GENERATED), "cpu")["n"] == 20


def test_the_protocol_contains_everything_that_must_be_equal(checkout: Checkout) -> None:
    """If it fails, runs of different N, reference or neighbours are compared."""
    text = evaluate(PARAMS, checkout(IMAGES, 8, GENERATED), "cpu")["protocol"]
    assert text == lite0.Lite0(32).protocol + (
        "; n=16 in 1 sets, reference=train by seed 0, kid 4 subsets of 16, k=3, copies among 16"
    )
    changed = PARAMS.model_copy(update={"kid_subset_size": 5})
    assert "kid 4 subsets of 5," in str(evaluate(changed, checkout(IMAGES, 8, GENERATED), "cpu")["protocol"])


def test_a_rerun_writes_the_same_bytes_and_nothing_elsewhere(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, DVC sees a change where there is none, or another stage's outputs are overwritten."""
    monkeypatch.undo()  # with the plot
    root = checkout(IMAGES, 8, GENERATED)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    evaluate(PARAMS, root, "cpu")
    first = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    evaluate(PARAMS, root, "cpu")
    assert first == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    made = {str(path.relative_to(root)) for path in set(first) - set(before)}
    assert {path for path in made if not path.startswith(".ganpipe/features/")} == {
        "stages/evaluate/card.md",
        "stages/evaluate/metrics.json",
        "stages/evaluate/real_fake.png",
        "stages/evaluate/nearest.png",
        "stages/evaluate/features.png",
        "stages/evaluate/snapshots.csv",
        "stages/evaluate/snapshots.png",
        "stages/evaluate/intervals.csv",
        "stages/evaluate/intervals.png",
    }
    assert all(first[path] == content for path, content in before.items())


def test_an_interval_scores_what_its_images_score_as_samples(
    checkout: Checkout, extracted: list[int]
) -> None:
    """If it fails, intervals are scored differently from samples, or in another order."""
    sets = [(0.5, IMAGES[:12]), (1.0, GENERATED[:12]), (0.25, np.zeros_like(GENERATED[:12]))]
    params = PARAMS.model_copy(update={"kid_subset_size": 5})
    evaluate(params, checkout(IMAGES, 8, GENERATED[:12], sets), "cpu")
    assert extracted == [16, 8, 12, 12, 12, 12], "training, held-out, generated, three intervals, each once"
    root = checkout(IMAGES, 8, GENERATED[:12])
    table = pd.read_csv(root / "stages/evaluate/intervals.csv")
    assert table["factor"].tolist() == [0.5, 1.0, 0.25]
    for i, (_, images) in enumerate(sets):
        alone = evaluate(params, checkout(IMAGES, 8, images), "cpu")
        for name in table.columns[1:]:
            assert table[name][i] == alone[name] or (alone[name] is None and np.isnan(table[name][i])), name


def test_without_intervals_the_table_is_empty_and_the_picture_a_note(checkout: Checkout) -> None:
    """If it fails, an output of the stage is missing, or an empty picture has no explanation."""
    root = checkout(IMAGES, 8, GENERATED)
    evaluate(PARAMS, root, "cpu")
    names = [f"{name}_lite0{end}" for name in ("kid", "layout_kid", "layout_mmd") for end in ("", "_sd")]
    header = f"factor,{','.join(names)},precision,recall,density,coverage,diversity,contrast\n"
    assert (root / "stages/evaluate/intervals.csv").read_text() == header
    note = np.asarray(Image.open(root / "stages/evaluate/intervals.png").convert("L"))
    ink = np.argwhere(note < 128)
    assert note.shape[0] < 60 and len(ink) > 100 and ink[:, 1].min() > 2


@pytest.mark.parametrize(("side", "channels", "columns"), [(28, 1, 8), (64, 3, 8), (256, 3, 4), (512, 1, 4)])
def test_a_row_for_each_interval_and_a_column_for_each_z(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], side: int, channels: int, columns: int
) -> None:
    """If it fails, people compare images of different z, or read the numbers of another row."""
    shape = (10, side, side, channels)
    images = np.zeros(shape, np.uint8)
    sets = [
        (factor, images + np.arange(i, i + 10, dtype=np.uint8)[:, None, None, None])
        for i, factor in ((10, 0.4), (100, 1.0))
    ]
    root = checkout(sets[0][1], 0, images, sets)
    evaluate(PARAMS, root, "cpu")
    assert "stages/evaluate/intervals.png" in capsys.readouterr().out
    picture = np.asarray(Image.open(root / "stages/evaluate/intervals.png").convert("L"))
    rows = [[int(value) for value in range(first, first + columns)] for first in (10, 100)]
    cell = {28: 84, 64: 64, 256: 256, 512: 256}[side]
    centres = [picture.shape[1] - (columns - c) * (cell + 2) + 2 + cell // 2 for c in range(columns)]
    for row, expected in enumerate(rows):
        y = picture.shape[0] - (2 - row) * (cell + 2) + 2 + cell // 2
        assert [int(picture[y, x]) for x in centres] == expected
        strip = picture[y - cell // 2 : y + cell // 2, : centres[0] - cell // 2]
        assert (strip < 50).sum() > 100, "no label"
    assert picture.shape[1] < 1500


@pytest.mark.parametrize(("side", "channels"), [(10, 1), (32, 1), (40, 3), (64, 1), (128, 3), (224, 1)])
def test_picture_shows_real_left_and_generated_right(checkout: Checkout, side: int, channels: int) -> None:
    """If it fails, generated images pass for real ones, or the picture is too small or too large."""
    generated = np.full((70, side, side, channels), 90, np.uint8)
    real = np.full((70, side, side, channels), 30, np.uint8)
    real[::2] = 31  # all alike, they would be refused
    root = checkout(real, 0, generated)
    evaluate(PARAMS, root, "cpu")
    picture = np.asarray(Image.open(root / "stages/evaluate/real_fake.png").convert("L"))
    height, width = picture.shape
    assert 480 < width <= 1100 and height < 1200
    below = picture[40:]
    middle = (width - 16) // 2
    assert np.isin(below[:, :middle], (30, 31)).all() and (below[:, middle + 16 :] == 90).all()
    assert (below[:, middle : middle + 16] == 255).all()
    assert (picture[:30, :middle] < 128).any() and (picture[:30, middle + 16 :] < 128).any()


def test_the_summary_contains_numbers_and_where_to_look_next(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, newcomers do not learn the result of their first run."""
    result = evaluate(PARAMS, checkout(IMAGES, 12, GENERATED[:12]), "cpu")
    shown = capsys.readouterr().out
    for words in (
        f"KID {result['kid_lite0']:.4f}",
        f"FD  {result['fd_lite0']:.1f}   floor {result['fd_lite0_floor']:.1f}",
        "coverage",
        "stages/evaluate/real_fake.png",
        "stages/train/grids",
        "dvc exp run -S train.glr=",
        "ganpipe compare",
        "ganpipe ui",
    ):
        assert words in shown


def test_sets_of_generated_images_give_mean_and_spread(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, sets share images, or the spread is not that over the sets."""
    params = PARAMS.model_copy(update={"seeds": 2})
    result = evaluate(params, checkout(IMAGES, 10, GENERATED), "cpu")
    assert result["n"] == 10
    alone = [evaluate(PARAMS, checkout(IMAGES, 10, part), "cpu") for part in (GENERATED[:10], GENERATED[10:])]
    for name in ("kid_lite0", "fd_lite0", "recall", "c2st_auc", "nn_ratio", "authenticity", "diversity"):
        if name == "nn_ratio":
            assert alone[0][name] is None and result[name] is None
            continue
        values = [number(each, name) for each in alone]
        assert result[name] == pytest.approx(np.mean(values), rel=1e-4, abs=1e-6), name
        assert result[f"{name}_sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-3, abs=1e-6), name
        assert alone[0][f"{name}_sd"] is None
    distance, ratio, floor = (number(result, f"fd_lite0{end}") for end in ("", "_ratio", "_floor"))
    assert ratio == pytest.approx(distance / floor, rel=1e-4)
    assert "±" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"evaluate\.seeds: 11 sets"):
        evaluate(params.model_copy(update={"seeds": 11}), checkout(IMAGES, 10, GENERATED), "cpu")


def test_copies_are_found_among_all_training_images(checkout: Checkout) -> None:
    """If it fails, copies of images outside the reference are not detected."""
    images = digits()[np.random.default_rng(0).permutation(5000)[:460]]
    pool, new = images[:360], images[360:]
    result = evaluate(PARAMS, checkout(pool, 100, pool[-100:]), "cpu")
    assert (result["nn_ratio"], result["authenticity"]) == (0, 0)
    assert "suspicious" in str(result["memorisation"]) and number(result, "precision") > 0.8
    part = PARAMS.model_copy(update={"search_images": 30})
    result = evaluate(part, checkout(pool, 100, new), "cpu")
    assert str(result["memorisation"]).startswith("unknown: only 100 of 260 training images (38%)")
    result = evaluate(PARAMS, checkout(pool, 100, new), "cpu")
    assert result["memorisation"] == "no sign of copies" and result["nn_ratio"] == pytest.approx(1, abs=0.15)
    assert result["c2st_auc_floor"] == pytest.approx(0.5, abs=0.2)


def test_real_features_are_cached(checkout: Checkout, extracted: list[int]) -> None:
    """If it fails, real features are computed again, or those of other data are used."""
    first = evaluate(PARAMS, checkout(IMAGES, 8, GENERATED[:12]), "cpu")
    assert extracted == [16, 8, 12]
    assert evaluate(PARAMS, checkout(IMAGES, 8, GENERATED[:12]), "cpu") == first and extracted[3:] == [12]
    evaluate(PARAMS, checkout(IMAGES[::-1].copy(), 8, GENERATED[:12]), "cpu")
    assert extracted[4:] == [16, 8, 12]


def test_other_threads_do_not_share_features(checkout: Checkout, extracted: list[int]) -> None:
    """If it fails, the last digits of metrics.json depend on how many threads an earlier run had."""
    torch.set_num_threads(1)
    root = checkout(IMAGES, 8, GENERATED[:12])
    evaluate(PARAMS, root, "cpu")
    try:
        torch.set_num_threads(2)
        evaluate(PARAMS, root, "cpu")
    finally:
        torch.set_num_threads(1)
    assert extracted == [16, 8, 12] * 2


def test_another_n_computes_only_the_layout_again(
    checkout: Checkout, extracted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, an image is seen twice, or all training images again for one more generated one."""
    monkeypatch.setattr(extractors, "batch_size", lambda _: 4)
    params = PARAMS.model_copy(update={"feature_resolution": 64})
    first = evaluate(params, checkout(IMAGES, 5, GENERATED[:5]), "cpu")
    assert extracted == [8, 11, 5, 5] and first["n"] == 5, "reference in whole batches, the rest, held out"
    root = checkout(IMAGES, 5, GENERATED[:9])
    assert evaluate(params, root, "cpu")["n"] == 9 and extracted[4:] == [12, 9]
    monkeypatch.undo()
    assert evaluate(params, root, "cpu")["kid_lite0"] == pytest.approx(
        number(evaluate(params, root, "cpu"), "kid_lite0")
    )


def test_images_of_one_colour_or_all_alike_are_marked(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, plain grey, which KID prefers to a bad try at digits, wins without a word."""
    grey, one = np.full_like(GENERATED, 60), GENERATED[:1].repeat(len(GENERATED), 0)
    result = evaluate(PARAMS, checkout(IMAGES, 0, GENERATED, [(0.5, grey)]), "cpu")
    assert result["degenerate"] is None and number(result, "contrast") == pytest.approx(1, abs=0.3)
    table = pd.read_csv(checkout(IMAGES, 0, GENERATED) / "stages/evaluate/intervals.csv")
    assert table["contrast"][0] == table["diversity"][0] == 0
    for images, words in (
        (grey, r"nearly one colour \(0.0% .* and nearly all alike"),
        (grey + np.arange(20, dtype=np.uint8)[:, None, None, None], r"nearly one colour \(0.0% "),
        (one, r"nearly all alike \(0.0% "),
    ):
        root = checkout(IMAGES, 0, images)
        flaw = str(evaluate(PARAMS, root, "cpu")["degenerate"])
        assert re.match(words, flaw) and f"the images are {flaw}" in capsys.readouterr().out
        assert f"the images are {flaw}.**" in (root / "stages/evaluate/card.md").read_text()


def test_snapshots_score_what_their_images_score_as_samples(
    checkout: Checkout, default_params: Params
) -> None:
    """If it fails, a curve has other z, epochs or generators than it should."""
    root = checkout(np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0))), 0, np.zeros((12, 32, 32, 1), np.uint8))
    evaluate(PARAMS, root, "cpu")
    header = "epoch,nimg,kid,fd,layout_kid,layout_mmd,precision,recall,density,coverage,diversity,contrast"
    assert (root / "stages/evaluate/snapshots.csv").read_text().split() == [header]
    model = default_params.model.model_copy(update={"ngf": 4, "nz": 6, "conditional": False})
    params = PARAMS.model_copy(update={"snapshots": True, "feature_resolution": 64})
    with pytest.raises(UserError, match="snapshots: no snapshots of the training"):
        evaluate(params, root, "cpu")
    folder = root / "stages/train"
    folder.mkdir()
    described = model.model_dump() | {"resolution": 32, "channels": 1, "train_images": 24, "nimg": 240}
    described |= {"data_digest": "0" * 64, "batch_size": 4, "train": default_params.train.model_dump()}
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="snapshots: no snapshots of the training; run the train stage"):
        evaluate(params, root, "cpu")
    made = {}
    for epoch in (10, 2):
        G = models.build_generator(NetworkSpec(model, 32, 1))
        save_generator(G, NetworkSpec(model, 32, 1), folder / f"snapshots/{epoch}.safetensors")
        made[epoch] = images_of(G, z_of_seeds(model, 3, 12, 0.9))
    evaluate(params, root, "cpu")
    table = pd.read_csv(root / "stages/evaluate/snapshots.csv")
    assert table["epoch"].tolist() == [2, 10] and table["nimg"].tolist() == [48, 240]
    for i, epoch in enumerate((2, 10)):
        np.save(root / "stages/sample/samples.npy", made[epoch])
        np.save(root / "stages/sample/intervals.npy", np.empty((0, *made[epoch].shape), np.uint8))
        alone = evaluate(params.model_copy(update={"snapshots": False}), root, "cpu")
        names = ("kid_lite0", "fd_lite0", "layout_kid_lite0", "layout_mmd_lite0", *table.columns[6:])
        for column, name in zip(table.columns[2:], names, strict=True):
            assert table[column][i] == alone[name], (epoch, name)


def test_mistakes_are_reported_in_one_line(checkout: Checkout) -> None:
    """If it fails, users meet a traceback, or numbers of images that do not belong together."""
    for generated, words in (
        (GENERATED[:, :24, :24], r"\(24, 24, 1\).*\(28, 28, 1\)"),
        (GENERATED.repeat(3, 3), r"\(28, 28, 3\).*\(28, 28, 1\)"),
        (GENERATED.astype(np.float32), "float32"),
        (GENERATED[:3], r"evaluate\.neighbours: 3 .* found 3"),
        (GENERATED[:1], "at least 2"),
    ):
        with pytest.raises(UserError, match=words) as error:
            evaluate(PARAMS, checkout(IMAGES, 8, generated), "cpu")
        assert "\n" not in str(error.value)
    root = checkout(IMAGES, 8, GENERATED, [(0.5, GENERATED)])
    (root / "stages/sample/intervals.json").write_text("[]")
    with pytest.raises(
        UserError, match=r"intervals\.json: no description of intervals\.npy .* run the sample"
    ):
        evaluate(PARAMS, root, "cpu")
    (root / "stages/sample/intervals.npy").unlink()
    with pytest.raises(UserError, match=r"intervals\.npy: not readable .* run the sample stage"):
        evaluate(PARAMS, root, "cpu")
    (root / "stages/sample/samples.npy").unlink()
    with pytest.raises(UserError, match=r"samples\.npy.*run the sample stage"):
        evaluate(PARAMS, root, "cpu")
