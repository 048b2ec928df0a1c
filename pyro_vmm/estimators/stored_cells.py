"""What a file of a model of cells holds beside that of arrays: covariates, batches, mappings and novelty."""

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from scipy.optimize import lsq_linear

from pyro_vmm.data.cell_rows import Covariates
from pyro_vmm.data.genes import GeneMatch
from pyro_vmm.estimators.mapping import Mapped
from pyro_vmm.estimators.novelty import NONE, QUANTILES, Usual
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.entries import Entries

#: The arrays of what is usual of a reference's cells, in a file, and their shapes.
USUAL = {"median": (2,), "scale": (2,), "quantiles": (QUANTILES,)}


def covariates(fitted: Entries, keys: Sequence[str | None]) -> Covariates:
    """What :meth:`~pyro_vmm.data.cell_rows.Covariates.to_dict` wrote; ``keys`` are the columns by the parameters."""
    found = fitted.part("covariates")
    for each in found.get("categorical", list) or [[]]:
        if each is not None and not (_texts(each) and len(each) > 2):
            raise found.wrong("categorical should hold an argument, a column and its categories for each covariate")
    for each in found.get("continuous", list):
        if not (isinstance(each, list) and len(each) == 3 and _texts(each[:1]) and _numbers(each[1:]) and each[2] >= 0):
            raise found.wrong("continuous should hold a column, its mean and its scale for each covariate")
    factor = found.get("size_factor", list)
    if not (len(factor) == 2 and (factor[0] is None or _texts(factor[:1])) and _numbers(factor[1:])):
        raise found.wrong("size_factor should hold a column, or none, and a number")
    restored = Covariates.from_dict(found.content)
    if restored.keys != (wanted := tuple(str(key) for key in keys if key is not None)):
        raise found.wrong(f"it is of the columns {restored.keys}, and params of {wanted}")
    return restored


def batch_counts(fitted: Entries, shape: tuple[int, int], labels: np.ndarray, n_cells: int) -> np.ndarray:
    """How many cells of each cluster are of each batch, (clusters, B).

    Files of earlier versions have shares alone. Numbers that give these are taken for a model that was mapped.

    Arguments:
        fitted: the entries.
        shape: the most clusters that there can be, and the batches.
        labels: the cluster of each cell of the fit, (N,).
        n_cells: how many there are, mapped ones too.
    """
    name, more = ("batch_counts", 0) if "batch_counts" in fitted else ("batch_shares", 1)  # of all cells
    found, least = fitted.floats(name).numpy(), labels.max() + 1
    if found.ndim != 2 or not least <= len(found) - more <= shape[0] or found.shape[1] != shape[1]:
        rows = f"{least + more} to {shape[0] + more}"
        raise fitted.wrong(f"{name} has shape {found.shape}, expected ({rows}, {shape[1]})")
    if (found < 0).any():
        raise fitted.wrong(f"{name} should hold no negative number")
    if name == "batch_counts":
        return found
    shares, whole = found[:-1], found[-1]
    sizes = np.bincount(labels, minlength=len(shares))
    if n_cells == len(labels):
        return np.rint(shares * sizes[:, None])
    # A cluster has the cells of the fit at least.
    found = lsq_linear(shares.T, n_cells * whole, (np.maximum(sizes, 1), np.inf))
    return shares * found.x[:, None]


def mappings_to_plain(mappings: Sequence[Mapped], genes: GeneMatch) -> dict:
    """How a model was mapped, for a file."""
    calls = [{**asdict(each), "elbo": list(each.elbo)} for each in mappings]
    return {"calls": calls, "gene_key": genes.key, "absent": list(genes.absent)}


def mappings(fitted: Entries) -> tuple[tuple[Mapped, ...], GeneMatch]:
    """What :func:`mappings_to_plain` wrote; empty for a model that was not mapped."""
    if "mapped" not in fitted:
        return (), GeneMatch()
    found = fitted.part("mapped")
    calls = tuple(
        Mapped(
            each.whole("n_batches", 1),
            each.whole("n_components", 1),
            each.whole("cells", 1),
            tuple(each.each("elbo", float, "numbers")),
        )
        for each in found.parts("calls", least=1)
    )
    key = found.content.get("gene_key")
    if not (key is None or isinstance(key, str)):
        raise found.wrong("gene_key should be text, or none")
    return calls, GeneMatch(key, tuple(found.each("absent", str, "names")))


def usual_to_plain(usual: Usual, factors: np.ndarray, adjustments: np.ndarray) -> dict:
    """What novelty is measured by, for a file."""
    arrays = {name: getattr(usual, name) for name in USUAL}
    arrays |= {"factors": factors, "adjustments": adjustments}
    return {**{name: torch.as_tensor(array) for name, array in arrays.items()}, "n": usual.n}


def usual(fitted: Entries, layout: CellLayout) -> tuple[Usual | None, np.ndarray, np.ndarray]:
    """What :func:`usual_to_plain` wrote; nothing usual for files of versions that measured novelty otherwise."""
    n_batches, n_genes = layout.n_batches, layout.n_genes
    if "usual" not in fitted or "factors" not in fitted.part("usual"):
        return None, np.ones((n_batches, n_genes)), np.tile(NONE, (n_batches, 1))
    found = fitted.part("usual")
    arrays = {name: found.floats(name, shape).numpy() for name, shape in USUAL.items()}
    factors, adjustments = found.floats("factors", (n_batches, n_genes)), found.floats("adjustments", (n_batches, 3))
    if (adjustments[:, 1] < 1).any():
        raise found.wrong("adjustments should stretch by at least 1")
    return Usual(**arrays, n=found.whole("n", 1)), factors.numpy(), adjustments.numpy()


def _texts(values) -> bool:
    return isinstance(values, list) and all(isinstance(each, str) for each in values)


def _numbers(values: list) -> bool:
    return all(isinstance(each, int | float) and math.isfinite(each) for each in values)
