"""The selection of variable genes, and what it and the data sets ask of counts and categories."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from pyro_vmm.data.blocks import is_native, native
from pyro_vmm.data.categories import Categories
from pyro_vmm.data.cell_checks import how_to_round, rounding_error, shown, where_counts_lie
from pyro_vmm.data.cells import COUNTS, counts_matrix, place_of, stays_outside
from pyro_vmm.data.structure import check_members, to_memory
from pyro_vmm.runtime.extras import require
from pyro_vmm.runtime.threads import same_threads

if TYPE_CHECKING:
    from anndata import AnnData

# A selected gene with fewer counts is dropped.
MIN_COUNTS = 3
# Neighbourhoods of scanpy's fit, as shares of the genes: its own, then wider ones.
SPANS = (0.3, 0.5, 0.7, 0.9, 1.0)
# Where scanpy's own fit fails, batches of fewer cells do not vote on the genes.
FEW_CELLS = 50
# With fewer different means among a batch's genes no curve can be fitted; on three genes or none loess crashes Python.
MIN_MEANS = 5


def select_genes(
    adata: "AnnData", n_top_genes: int, batch_key: str | None = None, layer: str | None = None
) -> "AnnData":
    """A copy with the genes that vary most: scanpy's ``highly_variable_genes``, flavor ``seurat_v3``, as in the paper.

    Of these, genes with fewer than 3 counts are dropped, then cells without any count; a warning says how many.
    Where scanpy's fit of the variance on the mean fails, as it does if many genes have the same few counts, it is
    repeated without the batches of fewer than 50 cells and on wider neighbourhoods; a warning says so.

    Arguments:
        adata: N cells, raw counts.
        n_top_genes: how many genes to select, at least 1; if there are not as many, all are kept.
        batch_key: the column of ``adata.obs`` that holds the batches: a gene has to vary within them. None for one.
        layer: the layer that holds the counts; None for ``adata.X``.
    """
    if isinstance(n_top_genes, bool) or not isinstance(n_top_genes, int | np.integer) or n_top_genes < 1:
        raise ValueError(f"n_top_genes={n_top_genes!r}, expected an integer of at least 1")
    place, matrix = place_of(layer), counts_matrix(adata, layer)
    if not adata.isbacked:
        _check_divisible(adata)
    if batch_key is not None:
        Categories.of(adata, batch_key).check_number(adata.n_obs)
    counts = whole_counts(matrix, place, hint=where_counts_lie(adata))
    batches = categorical(adata, batch_key, "batch_key") if batch_key is not None else one_batch(adata)
    with same_threads():
        top = most_variable(counts, batches, n_top_genes)
    cells, genes = enough(counts[:, top], 1)
    _warn_of_drops(cells, genes)
    if not cells.any():
        raise ValueError(f"the {top.sum()} most variable of {len(top)} genes have fewer than {MIN_COUNTS} counts each")
    if stays_outside(adata, layer):
        adata = adata.to_memory()
    check_members(adata)
    return adata[cells, np.flatnonzero(top)[genes]].copy()


def _check_divisible(adata: "AnnData") -> None:
    """Raise ``ValueError`` for sparse matrices of types that SciPy can't slice."""
    for place, matrix in {"X": adata.X, **{f"layers[{name!r}]": each for name, each in adata.layers.items()}}.items():
        if sparse.issparse(matrix) and not is_native(matrix.dtype):
            raise ValueError(
                f"adata.{place} is sparse with dtype {matrix.dtype}, which SciPy does not know; convert it: "
                f"adata.{place} = adata.{place}.astype(np.float32)"
            )


def _warn_of_drops(cells: np.ndarray, genes: np.ndarray) -> None:
    dropped = [
        f"{(~kept).sum()} of {len(kept)} {what}"
        for kept, what in (
            (genes, f"genes with fewer than {MIN_COUNTS} counts"),
            (cells, "cells without a count in the selected genes"),
        )
        if not kept.all()
    ]
    if dropped:
        warnings.warn(f"select_genes dropped {' and '.join(dropped)}", stacklevel=3)


def enough(counts: sparse.csr_matrix, cell_counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Which cells and genes to keep: genes with 3 counts or more, then cells with so many of those."""
    genes = np.asarray(counts.sum(0, dtype=np.int64)).ravel() >= MIN_COUNTS
    cells = np.asarray(counts[:, genes].sum(1, dtype=np.int64)).ravel() >= cell_counts
    return cells, genes


def most_variable(counts: sparse.csr_matrix, batches: pd.Categorical, n_top_genes: int) -> np.ndarray:
    """Which genes are among the ``n_top_genes`` most variable ones, bool (G,)."""
    if n_top_genes >= counts.shape[1]:
        return np.ones(counts.shape[1], dtype=bool)
    require("skmisc.loess", "Selecting variable genes by seurat_v3", "cells")
    usable = np.array([_can_be_fitted(counts[batches.codes == b]) for b in range(len(batches.categories))])
    if not usable.any():
        raise ValueError(
            f"cannot select {n_top_genes} of {counts.shape[1]} genes: in no batch do genes of {MIN_MEANS} or more "
            "different means vary; expected more cells or counts, or n_top_genes no less than there are genes"
        )
    large = usable & (np.bincount(batches.codes, minlength=len(usable)) >= FEW_CELLS)
    large = large if large.any() else usable
    spans = SPANS[1:] if (large == usable).all() else SPANS
    failure: ValueError | None = None
    for used, span in [(usable, SPANS[0]), *((large, span) for span in spans)]:
        rows = used[batches.codes]
        try:
            top = _scanpy_selection(counts[rows], batches[rows], n_top_genes, span)
        except ValueError as error:  # loess raises this for every singularity
            failure = error
            continue
        _warn_of_compromise(batches, used, span)
        return top
    raise ValueError(
        f"cannot select {n_top_genes} of {counts.shape[1]} genes: scanpy's fit of the variance on the mean failed "
        f"({failure}); drop genes that few cells express (scanpy.pp.filter_genes), or cells with few counts"
    ) from failure


def _scanpy_selection(counts: sparse.csr_matrix, batches: pd.Categorical, n_top_genes: int, span: float) -> np.ndarray:
    from anndata import AnnData

    scanpy = require("scanpy", "Selecting variable genes", "cells")
    # Nothing but what scanpy needs: the user's AnnData stays as it is, and names that occur twice do no harm.
    adata = AnnData(counts, obs=pd.DataFrame({"batch": batches.codes}, index=numbered("cell", counts.shape[0])))
    table = scanpy.pp.highly_variable_genes(
        adata,
        n_top_genes=int(n_top_genes),
        flavor="seurat_v3",
        batch_key=None if len(np.unique(batches.codes)) == 1 else "batch",
        span=span,
        check_values=False,
        inplace=False,
    )
    return table["highly_variable"].to_numpy()


def _can_be_fitted(counts: sparse.csr_matrix) -> bool:
    counts = counts.astype(np.float64)
    totals = np.asarray(counts.sum(0)).ravel()
    squares = np.asarray(counts.multiply(counts).sum(0)).ravel()
    varying = counts.shape[0] * squares != totals**2
    return len(np.unique(totals[varying])) >= MIN_MEANS


def _warn_of_compromise(batches: pd.Categorical, used: np.ndarray, span: float) -> None:
    if not used.all():
        sizes = np.bincount(batches.codes, minlength=len(used))
        ignored = ", ".join(f"{batches.categories[b]!r} ({sizes[b]} cells)" for b in np.flatnonzero(~used))
        warnings.warn(
            f"the selection of genes ignored the batches {ignored}: too small for scanpy's fit; their cells are kept",
            stacklevel=4,
        )
    if span != SPANS[0]:
        warnings.warn(
            f"the selection of genes took span={span} in place of scanpy's {SPANS[0]}, with which its fit failed: "
            "many genes have the same few counts",
            stacklevel=4,
        )


def whole_counts(matrix: Any, place: str, rounding: bool = False, hint: str = "") -> sparse.csr_matrix:
    """Counts as int32 CSR (N, G), the matrix itself unchanged; ``ValueError``, with a hint, for other values."""
    if not (isinstance(matrix, np.ndarray) or sparse.issparse(matrix)):  # in a file
        matrix = to_memory(place, matrix)
    counts = sparse.csr_matrix(native(matrix))
    whole = np.rint(counts.data)
    fractions = counts.data != whole
    bad = ~((whole >= 0) & (whole <= np.iinfo(np.int32).max)) | (fractions & (not rounding))
    if bad.any():
        value, error = counts.data[bad.argmax()], rounding_error([counts.data])
        if error == 0:
            raise ValueError(f"{place} holds {value:.6g}, expected raw counts of at most {np.iinfo(np.int32).max}")
        advice = hint if error is None else how_to_round(error, place)
        raise ValueError(f"{place} holds {shown(value)}, expected raw {COUNTS}{advice and f'; {advice}'}")
    if fractions.any():
        share = fractions.mean()
        warnings.warn(f"{place}: {share:.1%} of the values are not whole counts and were rounded", stacklevel=4)
    counts = sparse.csr_matrix((whole.astype(np.int32), counts.indices.copy(), counts.indptr.copy()), counts.shape)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def categorical(adata: "AnnData", key: str, argument: str) -> pd.Categorical:
    """The column's categories as text, one for each cell, none of them unused; refuses missing values."""
    categories = Categories.of(adata, key, argument)
    return pd.Categorical.from_codes(categories.codes(adata).numpy(), list(categories.names))


def one_batch(adata: "AnnData") -> pd.Categorical:
    """All cells in one batch, called "0"."""
    return pd.Categorical.from_codes(np.zeros(adata.n_obs, dtype=np.int64), ["0"])


def numbered(kind: str, n: int) -> pd.Index:
    """The names kind0, kind1, ..., (n,)."""
    return pd.Index([f"{kind}{i}" for i in range(n)], dtype=object)
