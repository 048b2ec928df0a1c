"""Components that the data do not need leave training."""

from typing import cast

import torch
from torch import Tensor

from pyro_vmm.inference.config import TrainingConfig
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.priors import Prior
from pyro_vmm.runtime.ranks import Ranks

# Of the share 1 / m_prior of the rows that the hyper-priors ask of a component, the part below which it counts as
# unneeded.
LEAST_SHARE = 0.1
# Nats by which the log-weight of an unneeded component falls per epoch. Its weight would get there by itself, but by a
# learning rate a step, long after its share of the rows has.
FADE = 3.0
# What a component may at most explain of any row to be frozen: all of them together change p(z) by less than 1e-6.
NEGLIGIBLE = 1e-8


class Shares:
    """What the components explain of an epoch's rows; nothing is read from the device before it ends.

    Arguments:
        prior: whose components.
        ranks: the processes that train together.

    Attributes:
        total: responsibilities, summed over rows, (K,).
        largest: of any row, (K,).
        used: whether a component is the most responsible one for any row, (K,).
    """

    def __init__(self, prior: Prior, ranks: Ranks):
        self.ranks = ranks
        self.total = prior.origin.new_zeros(prior.n_components)
        self.largest = torch.zeros_like(self.total)
        self.used = torch.zeros_like(self.total, dtype=torch.bool)

    def add(self, responsibilities: Tensor) -> None:
        """Count a minibatch's p(c | z), (M, K), or the part of it that this process holds."""
        if self.ranks.idle:
            return
        self.total += responsibilities.sum(0)
        self.largest = torch.maximum(self.largest, responsibilities.amax(0))
        self.used.index_fill_(0, responsibilities.argmax(-1), True)

    def join(self) -> None:
        """Count what other processes hold, too."""
        self.total = self.ranks.sum(self.total)
        self.largest = self.ranks.largest(self.largest)
        self.used = self.ranks.sum(self.used.int()) > 0


class Elimination:
    """Says which components take part in training, and trains a model of these alone.

    A component that explains less than a tenth of 1 / m_prior of the rows for ``freeze_after`` epochs on end fades out:
    its weight shrinks twentyfold an epoch. When it explains no row by more than 1e-8 it is frozen: it leaves the
    encoder's pass over the pseudo-inputs, the mixture and the optimiser, and p(z) does not change by its absence. It
    stays in the whole model, with its last values. (The paper says that the VMM can do without computation for
    components that it has eliminated; how is not in it.)

    Arguments:
        vae: the whole model, of K components.
        config: ``freeze_after`` and, for ``m_prior="batch"``, ``batch_size``.

    Attributes:
        model: what is to be trained: the whole model, or from the first frozen component on one without them.
        kept: the components it has, as positions in the whole model, (n,).
    """

    def __init__(self, vae: LatentVariableModel, config: TrainingConfig):
        prior = vae.prior
        prior.check()
        self.whole = self.model = vae
        # A prior with fixed weights is never pruned.
        free = prior.can_eliminate and prior.get_parameter("pi_logits").requires_grad
        self.after = config.freeze_after if free else None
        if self.after is not None:
            m_prior = cast(float | str, prior.m_prior)  # Prior.check has seen it
            self.least = LEAST_SHARE / (config.batch_size if isinstance(m_prior, str) else m_prior)
        self.kept = torch.arange(prior.n_components, device=prior.origin.device)
        # For how many epochs on end each has been below the least share.
        self.below = torch.zeros_like(self.kept)

    @torch.no_grad()
    def end_epoch(self, shares: Tensor, largest: Tensor) -> Tensor | None:
        """Fade and freeze; positions of the components that remain, (n',), or None if all n do.

        Arguments:
            shares: of the epoch's rows, by responsibility, (n,).
            largest: responsibility for any row, (n,).
        """
        if self.after is None:
            return None
        self.below = torch.where(shares < self.least, self.below + 1, 0)
        fading = self.below >= self.after
        self.model.prior.get_parameter("pi_logits").sub_(FADE * fading)
        frozen = fading & (largest < NEGLIGIBLE)
        self.update_whole()
        if not frozen.any():
            return None
        remain = (~frozen).nonzero().squeeze(1)
        self._keep(self.kept[remain], self.below[remain])
        return remain

    def update_whole(self) -> None:
        """Bring the whole model to where training is."""
        if self.model is not self.whole:
            self.whole.absorb(self.model, self.kept)

    def _keep(self, kept: Tensor, below: Tensor) -> None:
        self.kept, self.below = kept, below
        everything = len(kept) == self.whole.prior.n_components
        self.model = self.whole if everything else self.whole.subset(kept)

    def state_dict(self) -> dict:
        """Which components are trained, and what speaks against them."""
        return {"kept": self.kept.clone(), "below": self.below.clone()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`; the whole model has its parameters of that time already."""
        self._keep(state["kept"].to(self.kept.device), state["below"].to(self.kept.device))
