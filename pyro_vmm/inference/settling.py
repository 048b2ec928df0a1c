"""After training: the components that the encoded rows need, and the clusters that they make up."""

import copy
import warnings
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vmm.models import LatentVariableModel
from pyro_vmm.networks import inference_mode
from pyro_vmm.priors import Places, Prior
from pyro_vmm.priors.evidence import Encoded, Moments
from pyro_vmm.priors.groups import find_groups
from pyro_vmm.priors.moves import find_components
from pyro_vmm.runtime.exclusive import exclusive
from pyro_vmm.runtime.rows import Rows, read
from pyro_vmm.runtime.weighted import Weighted

#: The moves look at so many rows at most. A random part of more rows shows the same clusters, and the
#: evidence for each cluster stays bounded.
MOST_ROWS = 20_000
# So many rows of data near the middle of a component are tried as its pseudo-input.
CANDIDATES = 16
ROWS_AT_ONCE = 1024
# Settling uses this share of q(z; x)'s covariance. With none of it, unused directions, where means vary slightly, would
# count like any other.
UNCERTAINTY = 0.1


@dataclass(frozen=True)
class Moves:
    """How settling changed the components that have rows: the number of each change.

    Arguments:
        kept: components that still hold some of the rows that they had.
        born: components that take rows of others, from a split.
        merged: components whose rows all go to others.
    """

    kept: int
    born: int
    merged: int

    @classmethod
    def between(cls, before: np.ndarray, after: np.ndarray) -> "Moves":
        """The moves from the component of each row before, (n,), to that after, (n,)."""
        kept = len(np.unique(after[after == before]))
        return cls(kept, len(np.unique(after)) - kept, len(np.unique(before)) - kept)

    def __str__(self) -> str:
        change = f"{self.kept + self.merged} components with rows became {self.kept + self.born}"
        return f"{change}: {self.kept} kept, {self.born} born, {self.merged} merged away"


def can_settle(prior: Prior) -> bool:
    """Whether components may be moved: the prior can, and nothing that it would move is held fixed."""
    tensors = prior.component_tensors().values()
    return prior.can_place and all(each.requires_grad for each in tensors if isinstance(each, nn.Parameter))


class Settled(NamedTuple):
    """The result of settling.

    Arguments:
        clusters: the cluster of each component, (K,), numbered from 0.
        moves: what became of the components; None where they are as training left them.
        successors: the component that most rows of each went to, (K,), -1 for one without rows.
    """

    clusters: Tensor
    moves: Moves | None
    successors: Tensor


def settle(vae: LatentVariableModel, x: Rows, seed: int) -> Settled:
    """Move the prior's components to where the rows need them.

    The networks are at rest. Components split and merge until the evidence of the encoded rows rises no more
    (:mod:`pyro_vmm.priors.moves`), and those that nothing sets apart make up one cluster
    (:mod:`pyro_vmm.priors.groups`).

    A latent space so thin that a covariance has no inverse is a warning, and leaves the components as they are.

    Arguments:
        vae: a trained model.
        x: the rows that it was trained on, (N, ...). Those of :class:`~pyro_vmm.runtime.weighted.Weighted` are drawn by
            weight, and the evidence counts each draw once.
        seed: the seed of the choice of rows, if there are more than ``MOST_ROWS``.
    """
    each = torch.arange(vae.prior.n_components)
    if not can_settle(vae.prior):
        return Settled(each, None, each)
    before = copy.deepcopy(vae.prior.state_dict())
    try:
        return _settle(vae, x, seed)
    # Its documented name, though not one that torch's stubs export.
    except (np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
        vae.prior.load_state_dict(before)
        warnings.warn(f"the components can't be settled, and are as training left them: {error}", stacklevel=2)
        return Settled(each, None, each)


def _settle(vae: LatentVariableModel, x: Rows, seed: int) -> Settled:
    prior, rows = vae.prior, looked_at(x, seed)
    encoded = encode(vae, x, rows)
    before = responsibilities(vae, encoded).argmax(1)
    sharp, family = sharpened(encoded), prior.covariance
    found = find_components(sharp, before, prior.n_components, family.vague, family.fitted)
    slots = _slots(found, before, prior.n_components)
    with exclusive(), inference_mode(vae):
        prior.place(places(vae, x, rows, encoded, found), slots, vae.encoder)
    labels = responsibilities(vae, encoded).argmax(1)
    used, present = np.unique(labels, return_inverse=True)
    groups = np.full(prior.n_components, -1)
    groups[used] = find_groups(sharp, present)
    # A component without rows is a cluster without rows.
    unused = groups < 0
    groups[unused] = groups.max() + 1 + np.arange(unused.sum())
    after = slots.numpy()[found]
    return Settled(
        torch.as_tensor(groups), Moves.between(before, after), _successors(before, after, prior.n_components)
    )


def some_rows(n: int, seed: int) -> Tensor:
    """Positions of all of n rows, or of ``MOST_ROWS`` random ones, in the order of the data."""
    if n <= MOST_ROWS:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:MOST_ROWS].sort().values


def looked_at(x: Rows, seed: int) -> Tensor:
    """:func:`some_rows` of x; of weighted ones each as often as it counts."""
    return x.counted(MOST_ROWS, seed) if isinstance(x, Weighted) else some_rows(len(x), seed)


def sharpened(encoded: Encoded) -> Encoded:
    """The encoded rows as settling uses them: with little of their uncertainty."""
    return Encoded(encoded.mean, UNCERTAINTY * encoded.covariance)


def look(vae: LatentVariableModel, x: Rows, seed: int) -> tuple[Encoded, np.ndarray]:
    """The rows as settling uses them, ``MOST_ROWS`` at most, and q(c | x) of their components, (n, K)."""
    encoded = encode(vae, x, looked_at(x, seed))
    return sharpened(encoded), responsibilities(vae, encoded)


@torch.no_grad()
def encode(vae: LatentVariableModel, x: Rows, rows: Tensor) -> Encoded:
    """q(z; x) of rows at these positions, (n,)."""
    means, spreads = [], []
    with inference_mode(vae), closing(read(x, rows.split(ROWS_AT_ONCE))) as stream:
        for batch in stream:
            with exclusive():
                q = vae.encoder(batch)
                spread = q.scale_tril @ q.scale_tril.mT if hasattr(q, "scale_tril") else q.variance
            means.append(q.mean.double().cpu())
            spreads.append(spread.cpu())
    return Encoded(torch.cat(means).numpy(), torch.cat(spreads).numpy())


@torch.no_grad()
def responsibilities(vae: LatentVariableModel, encoded: Encoded) -> np.ndarray:
    """p(c | z) of each component at the mean of each encoded row, (n, K)."""
    origin = vae.prior.origin
    with inference_mode(vae), exclusive():
        clustering = vae.prior.clustering(vae.encoder)
    parts = torch.as_tensor(encoded.mean).split(ROWS_AT_ONCE)
    return torch.cat([clustering.responsibilities(part.to(origin)).cpu() for part in parts]).numpy()


def places(vae: LatentVariableModel, x: Rows, rows: Tensor, encoded: Encoded, labels: np.ndarray) -> Places:
    """Where components of these labels (n,) belong: the moments of their encoded rows, and the rows near their means.

    Arguments:
        vae: the model that encoded them.
        x: all rows.
        rows: positions of those encoded, (n,).
        encoded: these rows, encoded.
        labels: the component of each, numbered from 0 without gaps.
    """
    moments = Moments.of(encoded, labels)
    mean, covariance = moments.mean, moments.covariance
    near = np.empty((len(moments), CANDIDATES), dtype=int)
    for k in range(len(moments)):
        members = np.flatnonzero(labels == k)
        step = encoded.mean[members] - mean[k]
        distance = np.einsum("ni,ij,nj->n", step, np.linalg.inv(covariance[k]), step)
        near[k] = np.resize(members[np.argsort(distance, kind="stable")[:CANDIDATES]], CANDIDATES)
    origin = vae.prior.origin
    count, loc, spread = (torch.as_tensor(each).to(origin) for each in (moments.count, mean, covariance))
    candidates = x[rows[torch.as_tensor(near.ravel())]].to(origin)
    return Places(count, loc, spread, candidates.unflatten(0, near.shape))


def _successors(before: np.ndarray, after: np.ndarray, n: int) -> Tensor:
    """The component that most rows of each of n went to, (n,), -1 for one without rows.

    Arguments:
        before, after: the component of each row, (N,).
    """
    counts = np.zeros((n, n), dtype=int)
    np.add.at(counts, (before, after), 1)
    return torch.as_tensor(np.where(counts.any(1), counts.argmax(1), -1))


def _slots(found: np.ndarray, before: np.ndarray, n: int) -> Tensor:
    """Which of n components goes to each place: the one that most of its rows were of, if it is free."""
    counts = np.zeros((found.max() + 1, n), dtype=int)
    np.add.at(counts, (found, before), 1)
    slots, free = np.full(len(counts), -1), np.ones(n, bool)
    for k, old in zip(*np.unravel_index(np.argsort(-counts, axis=None, kind="stable"), counts.shape), strict=True):
        if counts[k, old] and slots[k] < 0 and free[old]:
            slots[k], free[old] = old, False
    slots[slots < 0] = np.flatnonzero(free)[: (slots < 0).sum()]
    return torch.as_tensor(slots)
