"""What the methods that explain clusters share, of arrays and of cells."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vmm.analysis.clusters import Tally, nearest
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.runtime.checks import check_not_negative, is_real
from pyro_vmm.runtime.rows import Rows

# Defaults for what sets clusters apart: the threshold of a change (in standard deviations of features, or log2 fold
# changes of genes), the expected share of false calls, and the probability of intervals.
DELTA, FDR, LEVEL = 0.5, 0.05, 0.95
# A group of fewer rows has no spread to speak of.
LEAST_ROWS = 3
# Fewer draws do not give a standard error.
LEAST_DRAWS = 10


class Seen(NamedTuple):
    """The clusters after one pass over the rows.

    Arguments:
        labels: the most probable cluster of each row, (N,).
        tally: sums over the rows of each cluster.
        present: the clusters that win a row, ascending, (K',).
        nearest: the rows of each of these nearest to its centre.
        centres: z at the centre of the largest component of each, (K', D).
        q: q(c | x) of all rows, (N, K), if it is kept; else empty, (0, K).
    """

    labels: np.ndarray
    tally: Tally
    present: np.ndarray
    nearest: Sequence[np.ndarray]
    centres: Tensor
    q: np.ndarray


def see(model: Estimator, x: Rows, n_nearest: int, keep_q: bool = False) -> Seen:
    """Clusters, centres and the rows nearest to them: those of the highest density under the largest component.

    Arguments:
        model: a fitted estimator.
        x: rows, (N, ...).
        n_nearest: rows for each cluster.
        keep_q: whether to keep q(c | x) of all rows, whose memory grows with them.
    """
    device, n_clusters, clustering = model._own_device(), model._n_clusters, model._clustering()
    clusters_of = model._summed(lambda q_c: q_c[:, :n_clusters])
    own = np.where(model.cluster_of_component_ == np.arange(n_clusters)[:, None], model.component_weights_, -1)
    main = torch.as_tensor(own.argmax(1), device=device)
    tally, labels, kept = Tally(n_clusters), [], []

    def look(rows: Tensor) -> Tensor:
        z = model.vae_.encoder(rows).mean
        q = clusters_of(clustering.responsibilities(z)).cpu().numpy()
        labels.append(tally.add(q))
        if keep_q:
            kept.append(q)
        component = main[torch.as_tensor(labels[-1], device=device)]
        return clustering.component_log_prob(z).gather(-1, component[:, None])[:, 0]

    nearness, won = model._batched(look, x), np.concatenate(labels)
    present = np.unique(won)
    near, centres = nearest(won, nearness, present, n_nearest), clustering.loc[main[present]].detach()
    return Seen(won, tally, present, near, centres, np.concatenate([np.empty((0, n_clusters), np.float32), *kept]))


def report(model: Any, data: Any, path: str | Path, labels: Any, title: str | None) -> list[str]:
    """:func:`pyro_vmm.report.write_report`, which is above the estimators: it is imported when it is called."""
    from pyro_vmm.report import write_report

    return write_report(model, data, path, labels, title=title)


def of_groups(q: np.ndarray, present: np.ndarray) -> np.ndarray:
    """q(c | x) (N, K) of the clusters that win a row, and of all others together, (N, K' + 1)."""
    own = q[:, present]
    return np.column_stack([own, (1 - own.sum(1)).clip(0)])


def check_calls(delta, fdr, level) -> None:
    """Raise ``ValueError`` unless delta is a finite number, at least 0, and the others lie between 0 and 1."""
    check_not_negative("delta", delta)
    for name, value in (("fdr", fdr), ("level", level)):
        if not (is_real(value) and 0 < value < 1):
            raise ValueError(f"{name}={value!r} should lie between 0 and 1")
