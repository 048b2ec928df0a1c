"""From fits to a table of evidence, and the rule that recommends a candidate."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pyro_vmm.evaluation import clustering
from pyro_vmm.evaluation.clustering import agreement
from pyro_vmm.evaluation.selection.fits import TRAINED_ON, Fit, Task

ALL, *HALVES = TRAINED_ON
#: The measures for each seed; the table has their means and standard deviations.
MEASURES = ("clusters", "log_px", "stability", "stability_seeds", "stability_halves", "confidence", "seconds")


def evidence(fits: Mapping[Task, Fit]) -> pd.DataFrame:
    """One row per candidate, in the order of the fits, with the recommended one marked.

    - ``m_prior``, ``learning_rate``: the candidate;
    - ``clusters``: the number of clusters in use, without strays;
    - ``log_px``: log p(x) of the rows held out, nats per row;
    - ``stability``: the mean of ``stability_seeds``, the agreement with the fits of other seeds, and of
      ``stability_halves``, the agreement of two fits to half of the rows each;
    - ``confidence``: the mean of max_c q(c | x) of the rows held out, 1 if no components overlap;
    - ``seconds``: the duration of a fit to all rows but those held out;
    - all of these are means over seeds; with ``_sd`` behind the name, their standard deviations over seeds;
    - ``stability_behind``: the difference to the most stable candidate, with its standard error ``stability_se``;
    - ``stable``: whether that is no more than one standard error;
    - ``log_px_behind``: the difference to the best stable likelihood, with its standard error ``log_px_se``;
    - ``likely``: whether the candidate is stable, and that is no more than one standard error;
    - ``recommended``: the likely one with the fewest clusters;
    - ``diverged``: how many fits diverged. Such a candidate has no evidence and is never recommended.

    The two criteria complement each other: the likelihood of rows held out tends to rise with ever more clusters, even
    if no other fit finds them again, and a few coarse clusters are often the easiest to find again.
    """
    of: dict = {}
    for task, fit in fits.items():
        of.setdefault((task.m_prior, task.learning_rate), {})[task.seed, task.part] = fit
    sound = {each: done for each, done in of.items() if not any(fit.diverged for fit in done.values())}
    if not sound:
        raise ValueError("training diverged with every candidate, expected smaller values of learning_rate")
    seeds = sorted({task.seed for task in fits})
    measured = pd.DataFrame([_measure(done, seeds) for done in sound.values()], index=pd.MultiIndex.from_tuples(sound))
    measured = _with_stability(measured, len(seeds))
    rows = np.stack([np.mean([done[seed, ALL].log_px for seed in seeds], axis=0) for done in sound.values()])
    measured = _recommend(_with_likelihood(measured, rows, len(seeds)))
    table = pd.DataFrame(list(of), columns=["m_prior", "learning_rate"]).join(measured, on=["m_prior", "learning_rate"])
    flags = {name: table[name].eq(True) for name in ("stable", "likely", "recommended")}
    return table.assign(**flags, diverged=[sum(fit.diverged for fit in done.values()) for done in of.values()])


def _with_stability(measured: pd.DataFrame, seeds: int) -> pd.DataFrame:
    behind, error = measured["stability"].max() - measured["stability"], _seed_error(measured["stability_sd"], seeds)
    return measured.assign(stability_behind=behind, stability_se=error, stable=behind <= error)


def _with_likelihood(measured: pd.DataFrame, rows: np.ndarray, seeds: int) -> pd.DataFrame:
    """Add the columns on likelihood, from log p(x) of each candidate and each row held out, (candidates, H)."""
    stable = measured["stable"].to_numpy()
    behind = rows[np.where(stable, rows.mean(1), -np.inf).argmax()] - rows
    error = np.hypot(behind.std(axis=1) / np.sqrt(rows.shape[1]), _seed_error(measured["log_px_sd"], seeds))
    likely = stable & (behind.mean(axis=1) <= error)
    return measured.assign(log_px_behind=behind.mean(axis=1), log_px_se=error, likely=likely)


def _recommend(measured: pd.DataFrame) -> pd.DataFrame:
    chosen = measured[measured["likely"]].sort_values("clusters", kind="stable").index[0]
    return measured.assign(recommended=measured.index == chosen)


def _seed_error(spread: pd.Series, seeds: int) -> float:
    """The standard error of a difference of two means over seeds.

    The variance is the mean over all candidates: two or three seeds of one show little of it, and one seed nothing.
    """
    return float(np.sqrt(2 * spread.fillna(0.0).pow(2).mean() / seeds))


def _active(fit: Fit) -> int:
    """The number of clusters in use; with strays, if an earlier version kept the fit."""
    return clustering.utilised_clusters(fit.clusters) if fit.active is None else fit.active


def _measure(done: Mapping[tuple[int, str], Fit], seeds: Sequence[int]) -> pd.Series:
    """Means and standard deviations of one candidate."""
    whole = [done[seed, ALL] for seed in seeds]
    by_seed = pd.DataFrame(
        {
            "clusters": [_active(fit) for fit in whole],
            "log_px": [fit.log_px.mean() for fit in whole],
            "stability_seeds": clustering.mean_agreements([fit.clusters for fit in whole]),
            "stability_halves": [agreement(*(done[seed, half].clusters for half in HALVES)) for seed in seeds],
            "confidence": [fit.confidence.mean() for fit in whole],
            "seconds": [fit.seconds for fit in whole],
        }
    )
    by_seed["stability"] = by_seed[["stability_seeds", "stability_halves"]].mean(axis=1)
    spread = by_seed.std().add_suffix("_sd")
    return pd.concat([by_seed.mean(), spread])[[name + end for name in MEASURES for end in ("", "_sd")]]
