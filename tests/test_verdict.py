"""The verdict on two settings: its interval against scipy's, its count of seeds, and that it is honest."""

import numpy as np
import pytest
from scipy import stats

from ganpipe.verdict import verdict


def numbered(values: np.ndarray) -> dict[int, float]:
    """Give each number a seed."""
    return dict(enumerate(values.tolist()))


@pytest.mark.parametrize(("n", "comparisons"), [(2, 1), (3, 1), (5, 3), (12, 1)])
def test_the_interval_is_scipys_of_a_paired_t_test(n: int, comparisons: int) -> None:
    """The wrong spread, tail or degrees of freedom claims what is chance, or nothing ever."""
    a, b = np.random.default_rng(n).normal((0.0, 0.7), 1, (n, 2)).T
    found, theirs = verdict(numbered(a), numbered(b), comparisons), stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(1 - 0.05 / comparisons)
    assert found is not None and found.pairs == n
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    word = "better" if a.mean() < b.mean() else "worse"
    assert found.word == (word if theirs.pvalue < 0.05 / comparisons else "not distinguishable")


def test_better_is_lower_and_only_common_seeds_count() -> None:
    """The order would be upside down, or other seeds pass for the same."""
    low, high = {0: 0.1, 1: 0.2, 2: 0.3, 7: 50.0}, {2: 0.4, 0: 0.21, 1: 0.3, 8: 0.0, 9: float("nan")}
    better, worse = verdict(low, high), verdict(high, low)
    assert better is not None and worse is not None
    assert (better.word, worse.word, better.pairs) == ("better", "worse", 3)
    assert better.difference == pytest.approx(-worse.difference) == pytest.approx(-0.31 / 3)
    assert verdict({0: 1.0}, {0: 2.0}) is None and verdict(low, {5: 1.0, 9: float("nan")}) is None


def test_the_count_of_seeds_is_what_it_takes_in_a_simulation() -> None:
    """People would train for nothing, or give up what a few more seeds could tell."""
    random, spread = np.random.default_rng(0), np.array([-1.0, 0.0, 1.0])
    found = verdict(numbered(0.9 + spread), numbered(np.zeros(3)))
    assert found is not None and found.word == "not distinguishable" and found.seeds is not None
    told = [
        [verdict(numbered(x), dict.fromkeys(range(n), 0.0)) for x in random.normal(0.9, 1, (400, n))]
        for n in (found.seeds, found.seeds - 3)
    ]
    right, fewer = (np.mean([each is not None and each.word == "worse" for each in row]) for row in told)
    assert right == pytest.approx(0.8, abs=0.06) and fewer < right


def test_equal_numbers_are_no_difference() -> None:
    """A spread of zero would divide by it."""
    same, apart = numbered(np.array([0.5, 0.6, 0.7])), numbered(np.array([1.5, 1.6, 1.7]))
    found = verdict(same, same)
    assert found is not None and (found.word, found.seeds) == ("not distinguishable", None)
    found = verdict(numbered(np.zeros(2)), numbered(np.ones(2)))
    assert found is not None and (found.word, found.low, found.seeds) == ("better", -1, 2)
    found = verdict(same, apart)
    assert found is not None and found.word == "better" and found.high == pytest.approx(-1)


def test_claims_about_equal_settings_are_as_rare_as_promised() -> None:
    """Chance would pass for a better setting more often than once in twenty."""
    a, b = np.random.default_rng(1).normal(0, 1, (2, 600, 3))
    words = [verdict(numbered(x), numbered(y)) for x, y in zip(a, b, strict=True)]
    assert np.mean([each is not None and each.word != "not distinguishable" for each in words]) < 0.07
