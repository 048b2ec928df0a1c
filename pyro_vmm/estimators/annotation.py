"""What a fitted model of cells writes into an AnnData."""

import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_vmm.data.columns import is_collection
from pyro_vmm.data.structure import check_members
from pyro_vmm.estimators import storing

if TYPE_CHECKING:
    from anndata import AnnData


def batch_counts(
    clusters: np.ndarray,  # (N,)
    batch: np.ndarray,  # (N,)
    n_clusters: int,
    n_batches: int,
) -> np.ndarray:
    """How many cells of each cluster are of each batch, (clusters, B)."""
    counts = np.zeros((n_clusters, n_batches))
    np.add.at(counts, (clusters, batch), 1)
    return counts


def batch_shares(
    clusters: np.ndarray,  # (N,)
    batch: np.ndarray,  # (N,)
    n_clusters: int,
    names: Sequence[str],  # (B,)
) -> pd.DataFrame:
    """The shares of batches in each cluster, from the cluster and the batch of each cell."""
    return shares_of(batch_counts(clusters, batch, n_clusters, len(names)), names)


def shares_of(counts: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Clusters x batches: what share of a cluster's cells is of each batch; rows add up to one.

    With batches of different sizes, compare with the shares of all cells, the last row, "all".

    Arguments:
        counts: the numbers of cells, (clusters, B).
        names: of the batches, (B,).
    """
    counts = np.vstack([counts, counts.sum(0)])
    shares = counts / np.where(counts.any(1, keepdims=True), counts.sum(1, keepdims=True), 1)
    clusters = pd.Index([*map(str, range(len(shares) - 1)), "all"], name="cluster")
    return pd.DataFrame(shares, index=clusters, columns=pd.Index(names))


def categorical(clusters: np.ndarray, n_clusters: int) -> pd.Categorical:
    """Clusters (N,) by their numbers as text, in the order of the numbers; those without a cell are left out."""
    return pd.Categorical.from_codes(clusters, [str(k) for k in range(n_clusters)]).remove_unused_categories()


def columns(key: str) -> tuple[str, str, str, str]:
    """The columns of ``adata.obs`` that :func:`write` makes or removes: cluster, probability, entropy, novelty."""
    return key, f"{key}_probability", f"{key}_entropy", f"{key}_novelty"


def check_key(key: str, read: Collection[str]) -> None:
    """Raise ``ValueError`` unless files can hold what is written under this key, and it replaces no column in ``read``.

    Arguments:
        key: how what is written is called.
        read: the columns of ``adata.obs`` that the model reads.
    """
    if not isinstance(key, str) or key in ("", ".") or "/" in key:
        raise ValueError(f"key_added={key!r} should be a name without '/': files of AnnData can't hold others")
    for column in columns(key):
        if column in read:
            raise ValueError(
                f"key_added={key!r} would replace the column {column!r} of adata.obs, which the model reads"
            )


def summary(q_c: Tensor) -> Tensor:
    """The most probable cluster of q(c | x) (M, K), its probability, and the entropy, float64 (M, 3)."""
    probability, cluster = q_c.max(-1)
    return torch.stack([cluster.double(), probability.double(), torch.special.entr(q_c).sum(-1).double()], -1)


def check_not_collected(adata: "AnnData") -> None:
    """Raise ``ValueError`` for a collection of several AnnData, which has no place for an embedding."""
    if is_collection(adata):
        raise ValueError(
            "adata is an AnnCollection, which can't be written to: annotate each of its parts, adata.adatas, or take "
            "transform(adata) and predict(adata)"
        )


def check_writable(adata: "AnnData") -> None:
    """Raise ``ValueError`` for a view of a file, which can't be written to, and for cells that can't be copied."""
    if adata.is_view and adata.isbacked:
        raise ValueError("adata is a view of a file, expected one that can be written to: adata.to_memory()")
    if adata.is_view:
        for each in getattr(adata, "mod", {"": adata}).values():
            check_members(each)


def of_model(
    weights: np.ndarray,
    batch_shares: pd.DataFrame,
    history: pd.DataFrame,
    settings: dict,
    best_epoch: int,
    seed: int | None,
) -> dict:
    """What a fitted model says of itself in ``adata.uns``, as every version of AnnData can write it.

    Arguments:
        weights: of the clusters, (K,).
        batch_shares: as :func:`shares_of` makes them.
        history: a row for each epoch.
        settings: the parameters of the fit as plain values.
        best_epoch: the epoch that the model is of.
        seed: of the fit.
    """
    return {
        "weights": weights,
        # Batches in the rows: their names may hold anything, those of columns have to suit an HDF5 file.
        "batch_shares": batch_shares.T.rename_axis(index="batch", columns=None),
        "history": history.set_axis(history.index.astype(str)),
        "settings": {name: _scalar(value) for name, value in settings.items()},
        "versions": storing.versions(),
        "best_epoch": best_epoch,
        "seed": _scalar(seed),
    }


def write(
    adata: "AnnData", key: str, z: np.ndarray, summary: np.ndarray, model: dict, novelty: np.ndarray | None = None
) -> None:
    """Write an embedding, and cluster, its probability and the entropy, and what the model says of itself.

    All of it survives ``write_h5ad``.

    Arguments:
        adata: N cells.
        key: how what is written is called.
        z: (N, D).
        summary: cluster, probability, entropy, (N, 3).
        model: what :func:`of_model` says.
        novelty: of each cell, (N,); None to write none, and to remove that of another model.
    """
    if adata.is_view:
        adata._init_as_actual(adata.copy())  # as scanpy does: without a warning
    adata.obsm[f"X_{key}"] = z
    cluster, probability, entropy = summary.T
    values = [categorical(cluster.astype(int), len(model["weights"]))]
    values += [None if each is None else each.astype(z.dtype) for each in (probability, entropy, novelty)]
    for column, value in zip(columns(key), values, strict=True):
        if value is not None:
            adata.obs[column] = value
        elif column in adata.obs:
            del adata.obs[column]
    # The colours of an earlier annotation may be those of other clusters.
    adata.uns.pop(f"{key}_colors", None)
    adata.uns[key] = model


def _scalar(value):
    """What every version of AnnData can write: None and lists as JSON."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
