"""Which of two settings is better, how sure that is, and how many seeds it would take to say.

A setting is judged by a number of each of its runs, one for each seed, lower being better. Runs with the same
seed share what chance decides, so settings are compared seed by seed: by Student's interval of the mean
difference, which holds for few seeds, and widens fast below five.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# The share of comparisons of equal settings in which a difference may be claimed, either way.
RISK = 0.05
# The chance of telling settings apart that differ as these seem to, for which the seeds are counted.
POWER = 0.8
MOST_SEEDS = 999


@dataclass(frozen=True)
class Verdict:
    """What can be said of a setting against another one.

    Attributes:
        word: "better", "worse" or "not distinguishable".
        difference: its mean number less the other's, over the seeds that both have.
        low: the interval of that difference; high likewise.
        pairs: seeds that both have.
        seeds: how many it would take to tell the two apart in four of five cases, if difference and spread
            are as they seem; None: more than MOST_SEEDS.
    """

    word: str
    difference: float
    low: float
    high: float
    pairs: int
    seeds: int | None


def verdict(
    numbers: Mapping[int, float], others: Mapping[int, float], comparisons: int = 1
) -> Verdict | None:
    """Compare a setting with another one.

    Args:
        numbers: seed → number of the setting, lower being better; NaN where a run has none.
        others: likewise, of the other setting.
        comparisons: how many such comparisons are made together; the risk of a false claim is shared among
            them (Bonferroni).

    Returns:
        None where fewer than two seeds have both numbers: one difference has no spread.
    """
    from scipy import stats

    seeds = sorted(set(numbers) & set(others))
    differences = np.array([numbers[seed] - others[seed] for seed in seeds], dtype=float)
    differences = differences[np.isfinite(differences)]
    n = len(differences)
    if n < 2:
        return None
    mean, sd, tail = float(differences.mean()), float(differences.std(ddof=1)), 1 - RISK / comparisons / 2
    reach = float(stats.t.ppf(tail, n - 1)) * sd / math.sqrt(n)
    low, high = mean - reach, mean + reach
    word = "better" if high < 0 else "worse" if low > 0 else "not distinguishable"
    counts = np.arange(2, MOST_SEEDS + 1)
    if sd > 0:
        shift = np.minimum(abs(mean) / sd * np.sqrt(counts), 30)  # far beyond any doubt, where nct gives NaN
        enough = stats.nct.sf(stats.t.ppf(tail, counts - 1), counts - 1, shift) >= POWER
    else:
        enough = np.full(len(counts), mean != 0)
    return Verdict(word, mean, low, high, n, int(counts[enough.argmax()]) if enough.any() else None)
