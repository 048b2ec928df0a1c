"""The scores of the integration benchmark. Only the scores use labels, after the fit.

Packages are imported inside the functions: each fit's fresh process imports this file, and its memory is measured.
"""

import logging

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

NAN = float("nan")
# The names of the scores, in the order of the tables.
CLUSTER_SCORES = ("clusters", "accuracy", "NMI", "ARI", "batch mixing")  # the last as records of finished runs have it
EMBEDDING_SCORES = ("NMI Leiden", "NMI k-means", "scib batch", "scib bio", "scib total")


def scores(reference: AnnData, embedding: np.ndarray, clusters: np.ndarray | None) -> dict[str, float]:
    """Every score of a result; NaN for those of own clusters if there are none, and of batches if there is one.

    Arguments:
        reference: the cells, from ``log_normalised``.
        embedding: (N, D).
        clusters: (N,), or None.
    """
    types, batches = reference.obs["cell_type"].to_numpy(str), reference.obs["batch"].to_numpy(str)
    return {
        **cluster_scores(types, batches, clusters),
        "NMI Leiden": leiden_nmi(embedding, types),
        "NMI k-means": k_means_nmi(embedding, types),
        **scib_scores(reference, embedding),
    }


def cluster_scores(types: ArrayLike, batches: ArrayLike, clusters: ArrayLike | None) -> dict[str, float]:
    """Scores of clusters (N,), against the types (N,) and the batches (N,) of the cells."""
    from pyro_vmm.evaluation import clustering

    if clusters is None:
        return dict.fromkeys(CLUSTER_SCORES, NAN)
    return {
        "clusters": clustering.utilised_clusters(clusters),
        "accuracy": clustering.accuracy_by_majority(types, clusters),
        "NMI": clustering.nmi(types, clusters),
        "ARI": clustering.ari(types, clusters),
        "batch mixing": batch_entropy(batches, clusters),
    }


def batch_entropy(batches: ArrayLike, clusters: ArrayLike) -> float:
    """H(batch | cluster) / H(batch): the batch's entropy inside clusters, weighted by size, over that in all cells.

    It is 1 if every cluster has the proportions of the whole, 0 if each is of one batch; NaN for a single batch.
    """
    from pyro_vmm.evaluation import clustering

    # Homogeneity is 1 - H(labels | clusters) / H(labels), whatever the labels are.
    return 1 - clustering.homogeneity(batches, clusters) if len(np.unique(batches)) > 1 else NAN


def leiden(embedding: np.ndarray, seed: int = 0) -> np.ndarray:
    """Leiden clusters (N,) at resolution 1 on 15 nearest neighbours of an embedding (N, D), by scanpy."""
    import scanpy as sc

    cells = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(embedding))]), obsm={"Z": embedding})
    sc.pp.neighbors(cells, n_neighbors=15, use_rep="Z")
    sc.tl.leiden(cells, resolution=1, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return cells.obs["leiden"].to_numpy()


def leiden_nmi(embedding: np.ndarray, types: np.ndarray) -> float:
    """NMI of :func:`leiden` clusters."""
    from pyro_vmm.evaluation import clustering

    return clustering.nmi(types, leiden(embedding))


def k_means_nmi(embedding: np.ndarray, types: np.ndarray) -> float:
    """NMI of k-means with the known number of types."""
    from sklearn.cluster import KMeans

    from pyro_vmm.evaluation import clustering

    return clustering.nmi(types, KMeans(len(np.unique(types)), n_init=10, random_state=0).fit_predict(embedding))


def scib_scores(reference: AnnData, embedding: np.ndarray) -> dict[str, float]:
    """scib-metrics' three totals, not rescaled between methods; for a single batch only bio conservation."""
    from scib_metrics.benchmark import BatchCorrection, Benchmarker

    logging.getLogger("scib_metrics").setLevel(logging.ERROR)  # it reports every type that is in one batch only
    several = reference.obs["batch"].nunique() > 1
    cells = AnnData(obs=reference.obs[["batch", "cell_type"]].copy(), obsm={"X_pca": reference.obsm["X_pca"]})
    cells.obsm["Z"] = np.ascontiguousarray(embedding, np.float32)
    benchmarker = Benchmarker(
        cells,
        "batch",
        "cell_type",
        ["Z"],
        batch_correction_metrics=BatchCorrection() if several else None,
        pre_integrated_embedding_obsm_key="X_pca",
        progress_bar=False,
    )
    benchmarker.benchmark()
    found = benchmarker.get_results(min_max_scale=False).loc["Z"]
    names = {"scib batch": "Batch correction", "scib bio": "Bio conservation", "scib total": "Total"}
    return {name: float(found.get(theirs, NAN)) for name, theirs in names.items()}
