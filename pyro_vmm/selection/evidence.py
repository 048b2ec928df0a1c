"""From fits to a table of evidence, and the rule that recommends."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pyro_vmm import metrics
from pyro_vmm.selection.fits import TRAINED_ON, Fit, Task

ALL, *HALVES = TRAINED_ON
#: What is measured for each seed, of which the table has the mean and the standard deviation.
MEASURES = ("clusters", "log_px", "stability", "stability_seeds", "stability_halves", "confidence", "seconds")


def agreement(clusters: np.ndarray, others: np.ndarray) -> float:
    """The adjusted Rand index of two clusterings, (N,) each; 0 if one of them is a single cluster.

    A single cluster agrees with itself, but no better than chance would, which is what 0 says.
    """
    if min(metrics.utilised_clusters(clusters), metrics.utilised_clusters(others)) == 1:
        return 0.0
    return metrics.ari(clusters, others)


def evidence(fits: Mapping[Task, Fit]) -> pd.DataFrame:
    """One row per candidate, in the order of the fits.

    - ``m_prior``, ``learning_rate``: the candidate;
    - ``clusters``: those in use;
    - ``log_px``: of the rows held out, nats per row;
    - ``stability``: the mean of ``stability_seeds``, the agreement with the fits of other seeds, and of
      ``stability_halves``, the agreement of two fits to half of the rows each;
    - ``confidence``: the mean of max_c q(c | x) of the rows held out, 1 if no components overlap;
    - ``seconds``: of a fit to all rows but those held out;
    - with ``_sd`` behind, the standard deviation of each of these over seeds, which it is otherwise the mean over;
    - ``log_px_behind``, ``stability_behind``: the best candidate by so much; ``log_px_se``, ``stability_se``: the
      standard error of this difference, from the spread over rows (``log_px``) and over seeds;
    - ``diverged``: how many fits did. Such a candidate has no evidence.
    """
    of: dict = {}
    for task, fit in fits.items():
        of.setdefault((task.m_prior, task.learning_rate), {})[task.seed, task.part] = fit
    sound = {each: done for each, done in of.items() if not any(fit.diverged for fit in done.values())}
    if not sound:
        raise ValueError("training diverged with every candidate; expected a smaller learning_rate")
    seeds = sorted({task.seed for task in fits})
    measured = pd.DataFrame({each: _measure(done, seeds) for each, done in sound.items()}).T
    measured = measured.join(_differences(measured, sound, seeds))
    table = pd.DataFrame(list(of), columns=["m_prior", "learning_rate"])
    table = table.join(measured.reindex(pd.MultiIndex.from_tuples(list(of))).reset_index(drop=True))
    return table.assign(diverged=[sum(fit.diverged for fit in done.values()) for done in of.values()])


def recommend(table: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`evidence` with the columns ``likely``, ``stable`` and ``recommended``.

    Likely are the candidates within one standard error of the best likelihood; stable those of them within one standard
    error of the most stable among them. The one with the fewest clusters is recommended.
    """
    likely = table["log_px_behind"] <= table["log_px_se"]
    behind = table["stability"][likely].max() - table["stability"]
    stable = likely & (behind <= table["stability_se"])
    chosen = table[stable].sort_values(["clusters", "m_prior"], kind="stable").index[0]
    return table.assign(likely=likely, stable=stable, recommended=table.index == chosen)


def _measure(done: Mapping[tuple[int, str], Fit], seeds: Sequence[int]) -> pd.Series:
    """Means and standard deviations of one candidate."""
    whole = [done[seed, ALL] for seed in seeds]
    by_seed = pd.DataFrame(
        {
            "clusters": [metrics.utilised_clusters(fit.clusters) for fit in whole],
            "log_px": [fit.log_px.mean() for fit in whole],
            "stability_seeds": [_others(whole, i) for i in range(len(whole))],
            "stability_halves": [agreement(*(done[seed, half].clusters for half in HALVES)) for seed in seeds],
            "confidence": [fit.confidence.mean() for fit in whole],
            "seconds": [fit.seconds for fit in whole],
        }
    )
    by_seed["stability"] = by_seed[["stability_seeds", "stability_halves"]].mean(axis=1)
    spread = by_seed.std().add_suffix("_sd")
    return pd.concat([by_seed.mean(), spread])[[name + end for name in MEASURES for end in ("", "_sd")]]


def _others(fits: Sequence[Fit], i: int) -> float:
    """The mean agreement of fit i with the others; NaN without others."""
    found = [agreement(fits[i].clusters, fit.clusters) for j, fit in enumerate(fits) if j != i]
    return float(np.mean(found)) if found else np.nan


def _differences(measured: pd.DataFrame, sound: Mapping, seeds: Sequence[int]) -> pd.DataFrame:
    """By how much each candidate is behind the best, and the standard error of that.

    The spread over seeds is pooled over the candidates: two or three seeds of one tell little of it.
    """
    log_px = np.stack([np.mean([done[seed, ALL].log_px for seed in seeds], axis=0) for done in sound.values()])
    behind = log_px[log_px.mean(1).argmax()] - log_px  # (candidates, H)
    over_rows = behind.var(axis=1, ddof=1) / behind.shape[1]
    over_seeds = 2 * measured[["log_px_sd", "stability_sd"]].fillna(0.0).pow(2).mean() / len(seeds)
    return pd.DataFrame(
        {
            "log_px_behind": behind.mean(axis=1),
            "log_px_se": np.sqrt(over_rows + over_seeds["log_px_sd"]),
            "stability_behind": measured["stability"].max() - measured["stability"],
            "stability_se": np.sqrt(over_seeds["stability_sd"]),
        },
        index=measured.index,
    )
