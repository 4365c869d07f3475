"""The verdict on two settings: its interval against scipy's, its count of seeds, and that it is honest."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, digits, updated
from PIL import Image
from scipy import stats

from ganpipe.experiments.verdict import verdict
from ganpipe.metrics import extractors, kid, lite0
from ganpipe.models.generator import images_of, load_generator, z_of_seeds
from ganpipe.params import Params
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import plan_training
from ganpipe.train.stage import train

# The honesty trial: digits of 16 px, small networks after so many epochs; seeds a cell, partitions to cells.
SIDE, EPOCHS, RUNS, SEEDS, PARTITIONS = 16, (4, 6, 8, 12, 16, 24), 27, 3, 3
# Columns of EPOCHS: the second training is about three times as long as the first.
LONGER = ((0, 3), (1, 4), (2, 5))


def numbered(values: np.ndarray) -> dict[int, float]:
    """Give each number a seed."""
    return dict(enumerate(values.tolist()))


@pytest.mark.parametrize(("n", "comparisons"), [(2, 1), (3, 1), (5, 3), (12, 1)])
def test_the_interval_is_scipys_of_a_paired_t_test(n: int, comparisons: int) -> None:
    """The wrong spread, tail or degrees of freedom claims what is chance, or nothing ever."""
    a, b = np.random.default_rng(n).normal((0.0, 0.7), 1, (n, 2)).T
    found, theirs = verdict(numbered(a), numbered(b), comparisons), stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(1 - 0.05 / comparisons)
    assert found is not None and found.paired_seeds == n
    assert (found.difference_low, found.difference_high) == pytest.approx((interval.low, interval.high))
    word = "better" if a.mean() < b.mean() else "worse"
    assert found.word == (word if theirs.pvalue < 0.05 / comparisons else "not distinguishable")


def test_better_is_lower_and_only_common_seeds_count() -> None:
    """The order would be upside down, or other seeds pass for the same."""
    low, high = {0: 0.1, 1: 0.2, 2: 0.3, 7: 50.0}, {2: 0.4, 0: 0.21, 1: 0.3, 8: 0.0, 9: float("nan")}
    better, worse = verdict(low, high), verdict(high, low)
    assert better is not None and worse is not None
    assert (better.word, worse.word, better.paired_seeds) == ("better", "worse", 3)
    assert better.difference == pytest.approx(-worse.difference) == pytest.approx(-0.31 / 3)
    assert verdict({0: 1.0}, {0: 2.0}) is None and verdict(low, {5: 1.0, 9: float("nan")}) is None


def test_the_count_of_seeds_is_what_it_takes_in_a_simulation() -> None:
    """People would train for nothing, or give up what a few more seeds could tell."""
    random, spread = np.random.default_rng(0), np.array([-1.0, 0.0, 1.0])
    found = verdict(numbered(0.9 + spread), numbered(np.zeros(3)))
    assert found is not None and found.word == "not distinguishable" and found.seeds_to_tell is not None
    told = [
        [verdict(numbered(x), dict.fromkeys(range(n), 0.0)) for x in random.normal(0.9, 1, (400, n))]
        for n in (found.seeds_to_tell, found.seeds_to_tell - 3)
    ]
    right, fewer = (np.mean([each is not None and each.word == "worse" for each in row]) for row in told)
    assert right == pytest.approx(0.8, abs=0.06) and fewer < right


def test_equal_numbers_are_no_difference() -> None:
    """A spread of zero would divide by it."""
    same, apart = numbered(np.array([0.5, 0.6, 0.7])), numbered(np.array([1.5, 1.6, 1.7]))
    found = verdict(same, same)
    assert found is not None and (found.word, found.seeds_to_tell) == ("not distinguishable", None)
    found = verdict(numbered(np.zeros(2)), numbered(np.ones(2)))
    assert found is not None and (found.word, found.difference_low, found.seeds_to_tell) == ("better", -1, 2)
    found = verdict(same, apart)
    assert found is not None and found.word == "better" and found.difference_high == pytest.approx(-1)


def test_claims_about_equal_settings_are_as_rare_as_promised() -> None:
    """Chance would pass for a better setting more often than once in twenty."""
    a, b = np.random.default_rng(1).normal(0, 1, (2, 600, 3))
    words = [verdict(numbered(x), numbered(y)) for x, y in zip(a, b, strict=True)]
    assert np.mean([each is not None and each.word != "not distinguishable" for each in words]) < 0.07


def trained(folder: Path, values: Params, write_packed: Callable[..., Path]) -> Iterator[list[float]]:
    """Train RUNS small networks that differ in their seed; yield the KID of each after EPOCHS."""
    images = digits()[np.random.default_rng(0).permutation(5000)]
    small = [Image.fromarray(each[:, :, 0]).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for each in images]
    images = np.stack([np.asarray(each) for each in small])[..., None]
    network, count = extractors.build("lite0", 32, None), 500
    real = lite0.extract(network, images[count : 2 * count], 256, "cpu")
    changes = {"train__epochs": max(EPOCHS), "train__snapshot_epochs": list(EPOCHS)}
    changes |= {"model__nz": 16, "model__ngf": 8, "model__ndf": 8, "train__ema_halflife_kimg": 1.0}
    # Plain DCGANs, whatever the default run is.
    changes |= {"model__architecture": "dcgan", "model__conditional": False, "train__drift_weight": 0.0}
    changes |= {
        "train__batch_size": 64,
        "train__dlr": 2e-4,
        "train__glr": 4e-4,
        "train__eval_every_kimg": 20.0,
    }
    for seed in range(RUNS):
        root, params = folder / str(seed), updated(values, train__seed=seed, **changes)
        write_packed(root, images, held_out=count)
        (root / "ganpipe").symlink_to(ROOT / "ganpipe")
        train(plan_training(params.model, params.train, root), root, TrainOptions())
        row = []
        for epoch in EPOCHS:
            G = load_generator(root / f"stages/train/snapshots/{epoch}.safetensors").network
            fake = images_of(G, z_of_seeds(params.model, 0, count, 1.0))
            row.append(kid.kid(real, lite0.extract(network, fake, 256, "cpu"), 50, 100, 0)[0])
        print(seed, *(f"{value:.4f}" for value in row), flush=True)
        yield row


def said(numbers: np.ndarray, others: np.ndarray) -> str:
    """Return the word of the verdict on two settings."""
    found = verdict(numbered(numbers), numbered(others))
    assert found is not None
    return found.word


def judged(kids: np.ndarray) -> tuple[list[str], list[str]]:
    """Return the words on a longer training against a shorter one, and on equal settings."""
    longer: list[str] = []
    equal: list[str] = []
    for partition in range(PARTITIONS):
        order = np.random.default_rng(partition).permutation(len(kids))
        cells = order[: len(kids) // SEEDS * SEEDS].reshape(-1, SEEDS)
        if partition == 0:
            longer += [said(kids[cell, b], kids[cell, a]) for a, b in LONGER for cell in cells]
        pairs = list(zip(cells[: len(cells) // 2], cells[len(cells) // 2 :], strict=False))
        equal += [said(kids[a, c], kids[b, c]) for c in range(len(EPOCHS)) for a, b in pairs]
    return longer, equal


@pytest.mark.long
def test_the_verdict_is_honest_on_real_trainings(
    tmp_path: Path, default_params: Params, write_packed: Callable[..., Path]
) -> None:
    """It would call better what is not, or nothing at all; -s prints the numbers of docs/evaluation.md."""
    kids = np.array(list(trained(tmp_path, default_params, write_packed)))
    longer, equal = judged(kids)
    for words in (longer, equal):
        print({word: words.count(word) for word in ("better", "worse", "not distinguishable")})
    for a, b in LONGER:  # over all runs there is no doubt about the order
        assert stats.ttest_rel(kids[:, a], kids[:, b]).statistic > 10
    assert len(longer) >= 20 and len(equal) >= 60
    assert "worse" not in longer and longer.count("not distinguishable") <= 0.2 * len(longer)
    assert equal.count("better") + equal.count("worse") <= 0.05 * len(equal)
