"""Where a prior starts: the rows or cells of its pseudo-inputs, and its centres."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from pyro_vmm.data.cell_rows import CellRows
from pyro_vmm.estimators.building import ROWS_AT_ONCE
from pyro_vmm.models import VAE
from pyro_vmm.priors.pseudo_inputs import PseudoInputs
from pyro_vmm.runtime.checks import check_choice

# k-means++ looks at no more cells than these: memory must not grow with their number.
KMEANS_CELLS = 10_000
Init = Literal["random", "k-means++"]
INITS = get_args(Init)
InitCentres = Literal["normal", "encoded"]
INIT_CENTRES = get_args(InitCentres)


@torch.no_grad()
def encode_centres(vae: VAE, rows: Tensor) -> None:
    """Start a prior's free centres where those of a "vmm" start: at the encoder's means of rows (K, ...)."""
    vae.prior.get_parameter("mu").copy_(PseudoInputs(rows).encode(vae.encoder).loc)


def initial_rows(x: Tensor, n: int, init: Init, seed: int, weights: np.ndarray | None = None) -> Tensor:
    """Indices (n,) of the rows of x (N, ...) that pseudo-inputs start from, no row twice.

    Rows with weights (N,), none of them 0, are drawn by them.
    """
    check_choice("init", init, INITS)
    if init == "random":
        return _random_order(len(x), weights)[:n]
    return _spread(x.flatten(1).numpy(), n, seed, weights)


def _random_order(n: int, weights: np.ndarray | None) -> Tensor:
    """Positions (n,) in random order: each next one is drawn from those left, by weight.

    By an exponential time for each (Efraimidis & Spirakis, Information Processing Letters 97:181, 2006).
    """
    if weights is None:
        return torch.randperm(n)
    return (torch.empty(n, dtype=torch.float64).exponential_() / torch.as_tensor(weights)).argsort()


def _spread(x: np.ndarray | sparse.csr_matrix, n: int, seed: int, weights: np.ndarray | None) -> Tensor:
    """Indices (n,) of rows of x (N, G) that k-means++ chooses."""
    from sklearn.cluster import kmeans_plusplus  # imported here, because it takes long

    return torch.as_tensor(kmeans_plusplus(x, n, sample_weight=weights, random_state=seed)[1])


def initial_cells(
    cells: CellRows,
    train: np.ndarray,  # (M,)
    n: int,
    init: str | Sequence[str],
    seed: int,
    counts: bool,
    weights: np.ndarray | None = None,
) -> Tensor:
    """Positions (n,) of the cells that pseudo-inputs start from.

    Arguments:
        cells: all cells; a name may be that of any.
        train: positions of those to train on.
        n: K.
        init: "random", "k-means++", or names of cells, which random ones follow.
        seed: of k-means++.
        counts: whether the values are counts; k-means++ then compares log-normalised ones.
        weights: of the cells to train on, (M,), none of them 0, by which they are drawn; None for all alike.
    """
    if not isinstance(init, str):
        named, random = _named(cells, init), torch.as_tensor(train)[_random_order(len(train), weights)]
        return torch.cat([named, random[~torch.isin(random, named)]])[:n]
    check_choice("init", init, INITS)
    if init == "random":
        return torch.as_tensor(train)[_random_order(len(train), weights)[:n]]
    order = _random_order(len(train), None)[:KMEANS_CELLS]  # k-means++ uses the weights itself
    some = torch.as_tensor(train)[order]
    values = [cells.counts.rows(part) for part in some.split(ROWS_AT_ONCE)]
    if counts:
        values = [(1e4 * part / part.sum(-1, keepdim=True).clamp(min=1)).log1p() for part in values]
    x = sparse.vstack([sparse.csr_matrix(part.numpy()) for part in values])
    return some[_spread(x, n, seed, None if weights is None else weights[order])]


def _named(cells: CellRows, names: Sequence[str]) -> Tensor:
    """The positions of cells of these names; ``ValueError`` if there is none of a name."""
    positions = cells.counts.cell_names.get_indexer(list(names))
    if (positions < 0).any():
        missing = [name for name, position in zip(names, positions, strict=True) if position < 0]
        raise ValueError(f"init names {len(missing)} cells that adata lacks: {missing[:10]}")
    return torch.as_tensor(positions)
