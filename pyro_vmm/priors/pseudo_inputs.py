"""Trainable inputs of the encoder, and their q(mu)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pyro_vmm.networks import inference_mode, inverse_softplus, scale_tril
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.checks import check_choice

PseudoBatch = Literal["averaged", "uniform", "trained"]
PSEUDO_BATCHES = get_args(PseudoBatch)
#: In a training step, pseudo-cells are encoded in so many random batches, if there are more.
FEW_BATCHES = 4
# Below it a pseudo-count would have no logarithm in float32.
LEAST_COUNT = -1 + 1e-6


class Centres(NamedTuple):
    """q(mu): means ``loc`` (K, D) and Cholesky factors ``tril`` (K, D, D) of the covariances; None for points."""

    loc: Tensor
    tril: Tensor | None


class PseudoInputs(nn.Module):
    """Trainable inputs of the encoder, (K, *event_shape), started at given rows of data.

    ``requires_grad_(False)`` keeps them fixed.

    Arguments:
        initial: the values to start from, (K, *event_shape); a copy is trained.
    """

    #: The parameters with a row for each component, see :class:`~pyro_vmm.priors.Prior`.
    per_component = ("u",)

    def __init__(self, initial: Tensor):
        super().__init__()
        self.u = nn.Parameter(initial.detach().clone())
        self._kept: list[Centres] | None = None  # what `encoded_once` keeps

    def __len__(self) -> int:
        return len(self.u)

    def forward(self) -> Tensor:
        return self.u

    def like(self, rows: Tensor) -> "PseudoInputs":
        """Pseudo-inputs of this kind that start at other rows, (n, ...)."""
        return type(self)(rows)

    def encode(self, encoder: nn.Module) -> Centres:
        """q(.; u), always in inference mode: no dropout, running statistics only."""
        if self._kept is None:
            return self._encode(encoder)
        if not self._kept:
            self._kept.append(self._encode(encoder))
        return self._kept[0]

    def _encode(self, encoder: nn.Module) -> Centres:
        # The statistics are copied: a training pass of the encoder would change them before the backward pass.
        statistics = {name: b.clone() for name, b in encoder.named_buffers() if b.is_floating_point()}
        with inference_mode(encoder):
            q = functional_call(encoder, statistics, (self(),)) if statistics else encoder(self())
        return Centres(q.mean, scale_tril(q))


class InBatches(PseudoInputs):
    """Pseudo-cells that may be encoded in each of B batches, and whose q(mu) then is an average over the batches.

    Within :func:`few_batches` these are some random batches, anew at each pass: an unbiased estimate of the mean and
    the covariance of q(mu), whose time does not grow with B.
    """

    def __init__(self, initial: Tensor):
        super().__init__(initial)
        self._few = False  # what `few_batches` sets

    def drawn(self, n_batches: int) -> Tensor:
        """The batches in which each pseudo-cell is encoded now, (B, K), or (S, K) of S random ones."""
        if self._few and n_batches > FEW_BATCHES:
            order = torch.rand(len(self), n_batches, device=self.u.device)
            return order.topk(FEW_BATCHES).indices.mT
        return torch.arange(n_batches, device=self.u.device)[:, None].expand(-1, len(self))


@contextmanager
def few_batches(module: nn.Module) -> Iterator[None]:
    """Within the context, pseudo-cells in a module are encoded in ``FEW_BATCHES`` random batches, if there are more.

    Training steps use it. Answers, settling and validation take all batches.
    """
    found = [each for each in module.modules() if isinstance(each, InBatches)]
    for each in found:
        each._few = True
    try:
        yield
    finally:
        for each in found:
            each._few = False


@contextmanager
def encoded_once(module: nn.Module) -> Iterator[None]:
    """Within the context, the pseudo-inputs in a module are encoded once: later calls return the same tensors.

    Neither the encoder nor the pseudo-inputs may change in between.
    """
    found = [each for each in module.modules() if isinstance(each, PseudoInputs)]
    for each in found:
        each._kept = []
    try:
        yield
    finally:
        for each in found:
            each._kept = None


def as_pseudo_inputs(value: Tensor | PseudoInputs) -> PseudoInputs:
    """A module of pseudo-inputs, or one that starts at these values, (K, *event_shape)."""
    return value if isinstance(value, PseudoInputs) else PseudoInputs(value)


class CellPseudoInputs(InBatches):
    r"""Pseudo-cells, (K, G + P): pseudo-counts softplus(u) - 1, and covariates.

    The shift, as in the authors' code (the paper has softplus alone), lets a pseudo-count be zero, but also fall to -1.

    The batch of a pseudo-cell decides whether a cluster can belong to a batch:

    - "trained": a point of the simplex by softmax, started at its middle, as in the authors' code;
    - "uniform": held in the middle;
    - "averaged": in every batch, and q(mu; u) is the normal with the mean and covariance of
      :math:`B^{-1} \sum_b q(\mu; u, b)`; in a training step some batches stand for all, see :class:`InBatches`.

    Further categorical covariates are in the middle of their simplices; continuous covariates are zero, assuming that
    they are standardised. If the batch is "trained", these covariates are trained too. A pseudo-cell belongs to no
    batch that the layout gets later (:mod:`pyro_vmm.models.growth`).

    Arguments:
        layout: the columns of a cell.
        initial: cells to start from, (K, G + P) or wider.
        batch: one of ``PSEUDO_BATCHES``.
        counts: whether the data are counts; otherwise the values are u.

    Attributes:
        n_batches: the number of batches that a pseudo-cell may belong to, the first ones of the layout.
    """

    per_component = ("covariates_raw",)
    covariates_raw: nn.Parameter | None

    def __init__(self, layout: CellLayout, initial: Tensor, batch: PseudoBatch = "trained", counts: bool = True):
        check_choice("pseudo_batch", batch, PSEUDO_BATCHES)
        values = layout.counts(initial)
        super().__init__(inverse_softplus(values + 1) if counts else values)
        self.batch: PseudoBatch = batch
        self.layout, self.counts, self.n_batches = layout, counts, layout.n_batches
        raw = nn.Parameter(values.new_zeros(len(values), layout.n_covariates)) if batch == "trained" else None
        self.register_parameter("covariates_raw", raw)

    def like(self, rows: Tensor) -> "CellPseudoInputs":
        like = type(self)(self.layout.with_batches(self.n_batches), self._without_later(rows), self.batch, self.counts)
        like.layout = self.layout
        return like

    def _without_later(self, rows: Tensor) -> Tensor:
        """Cells (n, G + P) or wider without the columns of later batches."""
        own, layout = self.layout.n_genes + self.n_batches, self.layout
        return torch.cat([rows[:, :own], rows[:, layout.n_genes + layout.n_batches :]], -1)

    @property
    def covariates(self) -> Tensor:
        """Covariates, (K, P); if the batch is "averaged", (B K, P), batch by batch, or those of fewer batches."""
        raw = self.covariates_raw
        if raw is None:
            raw = self.u.new_zeros(len(self), self.layout.with_batches(self.n_batches).n_covariates)
        others = self.layout.n_categories[1:]
        *categorical, continuous = raw.split([self.n_batches, *others, self.layout.n_continuous], -1)
        parts = [*(logits.softmax(-1) for logits in categorical), continuous]
        if self.batch == "averaged":
            batches = self.drawn(self.n_batches)
            parts = [part.repeat(len(batches), 1) for part in parts]
            identity = torch.eye(self.n_batches, dtype=parts[0].dtype, device=parts[0].device)
            parts[0] = identity.index_select(0, batches.flatten())
        parts[0] = F.pad(parts[0], (0, self.layout.n_batches - self.n_batches))
        return torch.cat(parts, -1)

    def forward(self) -> Tensor:
        """(K, G + P); or (B K, G + P), or fewer, batch by batch."""
        values = (F.softplus(self.u) - 1).clamp(min=LEAST_COUNT) if self.counts else self.u
        covariates = self.covariates
        return torch.cat([values.repeat(len(covariates) // len(values), 1), covariates], -1)

    def encode(self, encoder: nn.Module) -> Centres:
        centres = super().encode(encoder)
        return averaged(centres, self.n_batches, len(self)) if self.batch == "averaged" else centres


def averaged(centres: Centres, n_batches: int, n_components: int) -> Centres:
    """Normals (K, ...) with the mean and covariance of the average over B batches.

    Arguments:
        centres: (B K, ...), batch by batch; or (S K, ...), of S random batches for each of K, which stand for all.
        n_batches: B.
        n_components: K.
    """
    if n_batches == 1:
        return centres
    assert centres.tril is not None, "an encoder's q(mu) has covariances"
    n = len(centres.loc) // n_components
    loc, tril = (each.unflatten(0, (n, -1)) for each in (centres.loc, centres.tril))
    between = (loc - loc.mean(0)).permute(1, 0, 2)  # (K, B, D)
    if n < n_batches:  # those of a sample lie nearer to their own mean
        between = between * (n * (n_batches - 1) / ((n - 1) * n_batches)) ** 0.5
    # The stacked roots of all batches are a root of the sum. A covariance, which could be singular, is never computed.
    roots = torch.cat([tril.mT.permute(1, 0, 2, 3).flatten(1, 2), between], 1) / n**0.5
    triangle = torch.linalg.qr(roots).R
    signs = triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)
    return Centres(loc.mean(0), (triangle * signs).mT)
