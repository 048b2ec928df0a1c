"""Statistics for tables: mean ± standard deviation, and which means are marked."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def mean_std(values: Sequence[float] | np.ndarray, mean: str = ".3g", std: str = ".2g") -> str:
    """Mean ± sample standard deviation in these formats; a dash without values, no ± for a single one."""
    found = numbers(values)
    if len(found) == 0:
        return "-"
    return f"{found.mean():{mean}}" + (f" ± {found.std(ddof=1):{std}}" if len(found) > 1 else "")


def numbers(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The values that are not missing."""
    found = np.asarray(values, float)
    return found[~np.isnan(found)]


def plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """Values for JSON: None in place of NaN and infinity."""
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}


def best(samples: Mapping[str, Sequence[float]], larger: bool = True, level: float = 0.05) -> set[str]:
    """The name of the best mean, and the names that are not significantly worse.

    Not significantly worse means p >= level in a one-sided Mann-Whitney U test, as in the paper's tables. With up to
    three samples per name p can never be below 0.05, so the best mean stands alone.

    Arguments:
        samples: numbers for each name; names with only NaN are ignored.
        larger: whether more is better.
        level: of the test.
    """
    sign = 1 if larger else -1
    found = {name: sign * numbers(values) for name, values in samples.items()}
    found = {name: values for name, values in found.items() if len(values)}
    if not found:
        return set()
    top = max(found.values(), key=np.mean)
    return {name for name, values in found.items() if values.mean() == top.mean() or _as_good(values, top, level)}


def _as_good(values: np.ndarray, top: np.ndarray, level: float) -> bool:
    """Whether the test could find a difference but does not."""
    from scipy.stats import mannwhitneyu

    if 1 / math.comb(len(values) + len(top), len(top)) >= level:
        return False
    return mannwhitneyu(values, top, alternative="less").pvalue >= level
