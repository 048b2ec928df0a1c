"""Checks of cells' values: they find what users get wrong, before any training."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from pyro_vmm.data.cells import (
    COUNTS,
    CellBatches,
    counts_in_raw,
    counts_matrix,
    in_file,
    is_lazy,
    place_of,
    repeated_names,
)
from pyro_vmm.data.columns import is_collection
from pyro_vmm.runtime.checks import quoted

if TYPE_CHECKING:
    from anndata import AnnData

# Logarithms of counts are far below this, and its exponential does not overflow.
LARGEST_LOG = 50
# Counts after computations are off whole numbers by so much at most: absolute, and relative, for float32.
LARGEST_ERROR, LARGEST_RELATIVE_ERROR = 0.01, 2e-6


def check_cells(cells: CellBatches, counts: bool, training: bool = True) -> np.ndarray:
    """:func:`check_counts` if they should be counts, else :func:`check_values`; the cells' totals, float64 (N,)."""
    return check_counts(cells, training) if counts else check_values(cells)


def check_values(cells: CellBatches) -> np.ndarray:
    """Raise ``ValueError`` unless these are finite numbers, not necessarily counts; the cells' sums, float64 (N,)."""
    _check_names(cells)
    sums = np.empty(len(cells))
    for start, block in cells.chunks():
        _check_range(cells, start, block)
        sums[start : start + block.shape[0]] = np.asarray(block.sum(1, dtype=np.float64)).ravel()
    if not np.isfinite(sums).all():
        name = cells.cell_names[~np.isfinite(sums)][0]
        raise ValueError(f"{place_of(cells.layer)} holds a value that is not finite (cell {name!r}); drop or impute it")
    return sums


def check_counts(cells: CellBatches, training: bool = True) -> np.ndarray:
    """Raise ``ValueError`` unless these are counts that a model can be trained on; the cells' totals, float64 (N,).

    Arguments:
        cells: the counts, looked at a block of rows at a time.
        training: whether to refuse genes without a count in any cell; cells to map may have such genes.
    """
    _check_names(cells)
    totals, expressed = np.empty(len(cells)), np.zeros(cells.shape[1], dtype=bool)
    for start, block in cells.chunks():
        if block.dtype.itemsize < 4:  # sums would not fit
            block = block.astype(np.float32)
        block.sum_duplicates()
        _check_block(cells, start, block)
        totals[start : start + block.shape[0]] = np.asarray(block.sum(1, dtype=np.float64)).ravel()
        expressed[block.indices[block.data > 0]] = True
    _check_nonzero(cells, "cell", totals > 0)
    if training:
        _check_nonzero(cells, "gene", expressed)
    return totals


def _check_names(cells: CellBatches) -> None:
    """Raise ``ValueError`` unless there are cells and genes, each with a name of its own, which is text."""
    if 0 in cells.shape:
        raise ValueError(f"{place_of(cells.layer)} has shape {cells.shape}, expected at least one cell and one gene")
    for kind, attribute, names in (("cell", "obs", cells.cell_names), ("gene", "var", cells.gene_names)):
        if strange := [name for name in names if not isinstance(name, str)]:
            raise ValueError(
                f"adata.{attribute}_names holds {len(strange)} {kind} names that are not text: {quoted(strange)}"
            )
        if not names.is_unique:
            raise ValueError(repeated_names(kind, f"adata.{attribute}_names", names[names.duplicated()].unique()))


def _check_block(cells: CellBatches, start: int, block: sparse.csr_matrix) -> None:
    values = block.data
    if values.dtype.kind in "bu":
        return
    for bad, explain in (
        (~np.isfinite(values), lambda: "set missing values to 0, or drop these cells or genes"),
        (values < 0, lambda: _rounding(cells) or _hint(cells, "it looks scaled or corrected")),
        (values != np.rint(values), lambda: _rounding(cells) or _normalisation(cells, block)),
    ):
        if bad.any():
            first = bad.argmax()
            raise ValueError(
                f"{place_of(cells.layer)} holds {shown(values[first])} {_where(cells, start, block, first)}, "
                f"expected {COUNTS}; {explain()}"
            )
    _check_range(cells, start, block)


def _check_range(cells: CellBatches, start: int, block: sparse.csr_matrix) -> None:
    """The model sees float32, in which larger values of float64 would be infinite."""
    values, largest = block.data, np.finfo(np.float32).max
    if values.dtype.itemsize <= 4 or values.dtype.kind != "f" or not values.size:
        return
    if max(-values.min(), values.max()) > largest and (far := np.isfinite(values) & (np.abs(values) > largest)).any():
        first = far.argmax()
        raise ValueError(
            f"{place_of(cells.layer)} holds {values[first]:.6g} {_where(cells, start, block, first)}, which float32 "
            "does not hold; divide the values by a constant"
        )


def _where(cells: CellBatches, start: int, block: sparse.csr_matrix, position: int) -> str:
    """The cell and the gene of a value of the block whose first row is ``start``."""
    row = np.searchsorted(block.indptr, position, side="right") - 1
    return f"(cell {cells.cell_names[start + row]!r}, gene {cells.gene_names[block.indices[position]]!r})"


def shown(value: Any) -> str:
    """A number with as many digits as it takes to see that it is not whole."""
    short = f"{value:.6g}"
    return str(value) if float(short) != value and float(short) == np.rint(value) else short


def rounding_error(parts: Iterable[np.ndarray]) -> float | None:
    """The largest distance from a whole number, if the values are counts up to rounding; else None."""
    largest = 0.0
    for values in parts:
        whole = np.rint(values)
        with np.errstate(invalid="ignore"):  # of infinite values
            error = np.abs(values - whole)
        if not ((whole >= 0) & (error <= np.maximum(LARGEST_ERROR, LARGEST_RELATIVE_ERROR * whole))).all():
            return None
        largest = max(largest, float(error.max(initial=0.0)))
    return largest


def how_to_round(error: float, place: str, backed: bool = False) -> str:
    """What to do about counts that are off whole numbers by an ``error``, as a part of a sentence."""
    memory = "adata = adata.to_memory(); " if backed else ""
    code = f" by {memory}{place} = np.rint({place})" if place.startswith("adata.") else " them"
    return f"rounding left the values off whole numbers, by {error:.2g} at most (log1p and expm1 do that): round{code}"


def _rounding(cells: CellBatches) -> str:
    """The advice to round, if that makes counts of all cells; else empty."""
    error = rounding_error(block.data for _, block in cells.chunks())
    if error is None:
        return ""
    if is_collection(cells.adata):
        return how_to_round(error, "the parts")
    return how_to_round(error, place_of(cells.layer), cells.adata.isbacked)


def _normalisation(cells: CellBatches, block: sparse.csr_matrix) -> str:
    """Say what has been done to these counts, judged by the rows of the block."""
    if 0 <= block.data.min() and block.data.max() < LARGEST_LOG:
        evidence = _evidence(np.expm1(block.astype(np.float64)))
        if evidence:
            return _hint(cells, f"it looks log-normalised: after expm1 {evidence}")
    evidence = _evidence(block.astype(np.float64))
    finding = f"it looks normalised: {evidence}" if evidence else "if they are corrected or estimated, round them"
    return _hint(cells, finding)


def _evidence(block: sparse.csr_matrix) -> str:
    """The evidence that counts were divided by their totals, as a clause; empty if there is none."""
    block.eliminate_zeros()
    block = block[np.diff(block.indptr) > 1]
    if block.shape[0] < 2:
        return ""
    totals = np.asarray(block.sum(1)).ravel()
    if totals.std() < 0.01 * totals.mean():
        return f"the values of every cell add up to about {totals.mean():.6g}"
    # With a part of the genes the totals differ, but a cell's least value is mostly that of a single count.
    starts, lengths = block.indptr[:-1], np.diff(block.indptr)
    multiples = block.data / np.repeat(np.minimum.reduceat(block.data, starts), lengths)
    whole = np.logical_and.reduceat(np.abs(multiples - np.rint(multiples)) < 0.01, starts)
    if whole.mean() > 0.9 and multiples.max() > 1.5:
        return "the values of every cell are multiples of its smallest"
    return ""


def _hint(cells: CellBatches, finding: str) -> str:
    return f"{finding}. {where_counts_lie(cells.adata)}"


def where_counts_lie(adata: "AnnData") -> str:
    """Where else raw counts may be, as a sentence."""
    advice = "If a layer holds the raw counts, name it as layer; "
    if is_collection(adata):
        return f"{advice}adata.adatas[0].layers holds {quoted(adata.adatas[0].layers)}"
    return f"{advice}adata.layers holds {quoted(adata.layers)}{counts_in_raw(adata)}"


def _check_nonzero(cells: CellBatches, kind: str, kept: np.ndarray) -> None:
    """Raise ``ValueError`` unless each has a count. The advice names the matrix, as scanpy's filters look at X."""
    if kept.all():
        return
    names = (cells.cell_names if kind == "cell" else cells.gene_names)[~kept]
    place, genes, of = place_of(cells.layer), "", ""
    if is_collection(cells.adata) or is_lazy(counts_matrix(cells.adata, cells.layer)):
        some = "adata" if cells.all_genes else "adata[:, model.genes_]"
        layer = "" if cells.layer is None else f", {cells.layer!r}"
        raise ValueError(
            f"{place} has no counts in {len(names)} of {len(kept)} {kind}s: {quoted(names)}; expected at least one in "
            f"each. Go on with the others: cells, genes = nonzero(CellBatches({some}{layer})), of "
            f"pyro_vmm.data.cells; adata[cells{', genes' * cells.all_genes}]"
        )
    matrix = place
    if cells.adata.is_view and cells.adata.isbacked:
        of = ", of adata = adata.to_memory()"  # AnnData makes no view of a view of a file
    if not cells.all_genes:
        matrix, genes = place.replace("adata", "adata[:, model.genes_]", 1), " in the model's genes"
    elif not cells.adata.is_view and in_file(counts_matrix(cells.adata, cells.layer)):
        matrix += "[:]"  # what is in a file has no sums
    mask = f"np.ravel({matrix}.sum({1 if kind == 'cell' else 0})) > 0"
    raise ValueError(
        f"{place} has no counts{genes} in {len(names)} of {len(kept)} {kind}s: {quoted(names)}; expected at least one "
        f"in each. Go on with the others{of}: adata[{mask if kind == 'cell' else f':, {mask}'}]"
    )
