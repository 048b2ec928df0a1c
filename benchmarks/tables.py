"""What the benchmarks' reports share: Markdown tables, the marks of the best, the machine."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def line(cells: Sequence) -> str:
    """A row of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def header(columns: Sequence[str]) -> list[str]:
    """The two lines that a table begins with."""
    return [line(columns), "|---" * len(columns) + "|"]


def mean_std(values: Sequence[float], mean: str = ".3g", std: str = ".2g") -> str:
    """Mean ± sample standard deviation in these formats; a dash without values, no ± for a single one."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return "-"
    return f"{values.mean():{mean}}" + (f" ± {values.std(ddof=1):{std}}" if len(values) > 1 else "")


def best(samples: Mapping[str, Sequence[float]], larger: bool = True, level: float = 0.05) -> set[str]:
    """The name of the best mean, and the names of what is not significantly worse.

    That is p >= level in a one-sided Mann-Whitney U test, as the paper marks its tables. Up to three samples a name can
    never differ at 0.05, so there the test has no say and the best mean stands alone.

    Arguments:
        samples: numbers for each name; names that have only NaN take no part.
        larger: whether more is better.
        level: of the test.
    """
    sign = 1 if larger else -1
    numbers = {name: sign * np.asarray(values, float) for name, values in samples.items()}
    numbers = {name: values[~np.isnan(values)] for name, values in numbers.items()}
    numbers = {name: values for name, values in numbers.items() if len(values)}
    if not numbers:
        return set()
    top = max(numbers.values(), key=np.mean)
    return {name for name, values in numbers.items() if values.mean() == top.mean() or _as_good(values, top, level)}


def _as_good(values: np.ndarray, top: np.ndarray, level: float) -> bool:
    """Whether the test could tell the two apart and does not."""
    from scipy.stats import mannwhitneyu

    if 1 / math.comb(len(values) + len(top), len(top)) >= level:
        return False
    return mannwhitneyu(values, top, alternative="less").pvalue >= level


def machine(threads: int | None = None) -> str:
    """Where and with what the numbers were made; with torch's own threads if none are named."""
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    threads = threads or torch.get_num_threads()
    used = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}, {used}"


def write(path: Path, title: str, about: str, lines: Sequence[str]) -> None:
    """A page: a heading, a paragraph, and the lines of its tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"# {title}", "", about, "", *lines]) + "\n")
