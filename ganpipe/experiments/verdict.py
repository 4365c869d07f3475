"""Decide which of two settings is better, with what confidence, and how many seeds a decision needs.

A setting is judged by one number of each of its runs, one run a seed; lower is better. Runs with the same
seed share their random numbers, so settings are compared seed by seed: with Student's confidence interval of
the mean difference (a paired t-test). It holds for few seeds, and is wide with fewer than five.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

RISK = 0.05  # the probability that equal settings are called different
POWER = 0.8  # the probability of detecting the estimated difference, for which seeds are counted
MOST_SEEDS = 999


@dataclass(frozen=True)
class Verdict:
    """A comparison of a setting with another one."""

    word: str  # "better", "worse" or "not distinguishable"
    difference: float  # mean over the common seeds of the setting's number minus the other's
    difference_low: float  # ends of its confidence interval
    difference_high: float
    paired_seeds: int  # number of common seeds
    # How many seeds would tell the settings apart with probability POWER, if the difference and its spread
    # are as estimated; None: more than MOST_SEEDS.
    seeds_to_tell: int | None

    def __str__(self) -> str:
        low, high = self.difference_low, self.difference_high
        decimals = max(0, 1 - math.floor(math.log10(max(high - low, 1e-9))))
        more = decimals + (abs(self.difference) < 10**-decimals)  # "+0" would look like no difference
        text = f"{self.word}: {self.difference:+.{more}f} ({low:+.{decimals}f} to {high:+.{decimals}f})"
        seeds = f"about {self.seeds_to_tell}" if self.seeds_to_tell else f"more than {MOST_SEEDS}"
        return text + (f"; {seeds} seeds would tell" if self.word == "not distinguishable" else "")


def verdict(
    numbers: Mapping[int, float], others: Mapping[int, float], comparisons: int = 1
) -> Verdict | None:
    """Compare a setting with another one.

    Args:
        numbers: seed → number of the setting, lower is better; NaN where a run has none.
        others: the same of the other setting.
        comparisons: how many such comparisons are made together; they share RISK (Bonferroni).

    Returns:
        None if fewer than two seeds have both numbers, because one difference has no spread.
    """
    differences = (pd.Series(numbers, dtype=float) - pd.Series(others, dtype=float)).dropna()
    n, mean, sd = len(differences), float(differences.mean()), float(differences.std())
    if n < 2:
        return None
    quantile = 1 - RISK / comparisons / 2
    half_width = float(stats.t.ppf(quantile, n - 1)) * sd / math.sqrt(n)
    low, high = mean - half_width, mean + half_width
    word = "better" if high < 0 else "worse" if low > 0 else "not distinguishable"
    counts = np.arange(2, MOST_SEEDS + 1)
    if sd > 0:
        # The power of the t-test at each count; scipy's nct gives NaN far above 30, where the power is 1.
        noncentrality = np.minimum(abs(mean) / sd * np.sqrt(counts), 30)
        enough = stats.nct.sf(stats.t.ppf(quantile, counts - 1), counts - 1, noncentrality) >= POWER
    else:
        enough = np.full(len(counts), mean != 0)
    return Verdict(word, mean, low, high, n, int(counts[enough.argmax()]) if enough.any() else None)
