"""Scores of a clustering: arrays in, floats out.

``labels`` are known classes, which training never sees; ``clusters`` are the clusters assigned to the same rows,
and ``probabilities`` the (N, K) probabilities that row i belongs to cluster k.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn import metrics as sk


def clustering_scores(
    labels: ArrayLike,  # shape: (N,)
    probabilities: ArrayLike,  # shape: (N, K)
) -> dict[str, float]:
    """Every score below, under the name of its function; a row's cluster is its most probable one.

    Arguments:
        labels: the known class of each row, shape (N,), of any type, none missing.
        probabilities: the probability of each cluster, shape (N, K); rows sum to one.
    """
    probabilities = _check_probabilities(probabilities)
    clusters = probabilities.argmax(axis=1)
    return {
        "utilised_clusters": utilised_clusters(clusters),
        "accuracy_by_exemplar": accuracy_by_exemplar(labels, probabilities),
        "accuracy_by_majority": accuracy_by_majority(labels, clusters),
        "nmi": nmi(labels, clusters),
        "ari": ari(labels, clusters),
        "homogeneity": homogeneity(labels, clusters),
        "completeness": completeness(labels, clusters),
    }


def utilised_clusters(clusters: ArrayLike) -> int:
    """Number of distinct clusters among ``clusters``, shape (N,): those that win at least one row."""
    return int(_codes("clusters", clusters).max()) + 1


def labels_by_exemplar(
    labels: ArrayLike,  # shape: (N,)
    probabilities: ArrayLike,  # shape: (N, K)
) -> np.ndarray:  # shape: (N,)
    r"""The paper's prediction of each row's label.

    .. math:: \hat y_i = y_{e(c_i)}, \quad c_i = \arg\max_k p_{ik}, \quad e(k) = \arg\max_i p_{ik}

    A cluster takes the label of its exemplar, the row that is most probable under it (the first of several),
    and gives it to every row assigned to it. An exemplar may itself be assigned to another cluster.

    Arguments:
        labels: the known class of each row, shape (N,).
        probabilities: the probability of each cluster, shape (N, K); rows sum to one.
    """
    labels, probabilities = _check_labels("labels", labels), _check_probabilities(probabilities)
    _check_same_rows("labels", labels, "probabilities", probabilities)
    exemplars = probabilities.argmax(axis=0)
    return labels[exemplars[probabilities.argmax(axis=1)]]


def accuracy_by_exemplar(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Share of the (N,) rows whose label ``labels_by_exemplar`` predicts from the (N, K) probabilities."""
    return float((labels_by_exemplar(labels, probabilities) == _check_labels("labels", labels)).mean())


def accuracy_by_majority(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Share of rows whose label is the most frequent one in their cluster; both have shape (N,).

    Also called purity. It only grows when clusters are split: one cluster per row scores 1.
    """
    counts = sk.cluster.contingency_matrix(*_check_pair(labels, clusters))
    return float(counts.max(axis=0).sum() / counts.sum())


def nmi(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Normalised mutual information: over the arithmetic mean of the two entropies; both have shape (N,)."""
    return float(sk.normalized_mutual_info_score(*_check_pair(labels, clusters)))


def ari(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Adjusted Rand index (Hubert & Arabie, 1985); both have shape (N,).

    The authors' code reports the adjusted mutual information under this name; this is the adjusted Rand index itself.
    """
    return float(sk.adjusted_rand_score(*_check_pair(labels, clusters)))


def agreement(clusters: ArrayLike, others: ArrayLike) -> float:
    """The adjusted Rand index of two clusterings, (N,) each; 0 if one of them is a single cluster.

    A single cluster agrees with itself, but no better than by chance, which 0 stands for.
    """
    if min(utilised_clusters(clusters), utilised_clusters(others)) == 1:
        return 0.0
    return ari(clusters, others)


def mean_agreements(clusterings: Sequence[ArrayLike]) -> list[float]:
    """The mean :func:`agreement` of each clustering, (N,), with the others; NaN without others."""
    found = np.full((len(clusterings), len(clusterings)), np.nan)
    for i, j in combinations(range(len(clusterings)), 2):
        found[i, j] = found[j, i] = agreement(clusterings[i], clusterings[j])
    return [float(np.mean(row[~np.isnan(row)])) if len(row) > 1 else np.nan for row in found]


def homogeneity(labels: ArrayLike, clusters: ArrayLike) -> float:
    """One when no cluster mixes labels (Rosenberg & Hirschberg, 2007); both have shape (N,)."""
    return float(sk.homogeneity_score(*_check_pair(labels, clusters)))


def completeness(labels: ArrayLike, clusters: ArrayLike) -> float:
    """One when no label is spread over clusters (Rosenberg & Hirschberg, 2007); both have shape (N,)."""
    return float(sk.completeness_score(*_check_pair(labels, clusters)))


def _check_pair(labels: ArrayLike, clusters: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as integer codes, so that scikit-learn never guesses a type from strings or floats."""
    label_codes, cluster_codes = _codes("labels", labels), _codes("clusters", clusters)
    _check_same_rows("labels", label_codes, "clusters", cluster_codes)
    return label_codes, cluster_codes


def _codes(name: str, values: ArrayLike) -> np.ndarray:
    """Integers 0, 1, ... in place of the distinct values."""
    values = _check_labels(name, values)
    try:
        return np.unique(values, return_inverse=True)[1]
    except TypeError as error:
        kinds = sorted({type(value).__name__ for value in values.tolist()})
        raise ValueError(f"{name} must be of one type, got a mixture of {', '.join(kinds)}") from error


def _check_labels(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must have shape (N,) with N >= 1, got {values.shape}")
    missing = pd.isna(values)
    if missing.any():
        raise ValueError(
            f"{name} must not be missing: {missing.sum()} of {len(values)} are None or NaN, "
            f"the first in row {missing.argmax()}"
        )
    return values


def _check_probabilities(probabilities: ArrayLike) -> np.ndarray:
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.size == 0:
        raise ValueError(f"probabilities must have shape (N, K) with N, K >= 1, got {probabilities.shape}")
    if probabilities.dtype.kind not in "biuf":
        raise ValueError(f"probabilities must be real numbers, got dtype {probabilities.dtype}")
    # The tolerance admits float32 and float16; log-probabilities, logits and NaN fail.
    sums = probabilities.sum(axis=1, dtype=float)
    right = (probabilities >= 0).all(axis=1) & (np.abs(sums - 1) < 1e-2)
    if not right.all():
        row = right.argmin()
        raise ValueError(
            f"probabilities must be non-negative and sum to 1 in each row, got {probabilities[row].min()} "
            f"as the smallest and {sums[row]} as the sum in row {row}"
        )
    return probabilities


def _check_same_rows(name: str, values: np.ndarray, other_name: str, other: np.ndarray) -> None:
    if len(values) != len(other):
        raise ValueError(f"{name} and {other_name} must have equally many rows, got {values.shape} and {other.shape}")
