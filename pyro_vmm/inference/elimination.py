"""Components that the data do not need leave training."""

from typing import cast

import torch
from torch import Tensor

from pyro_vmm.inference.config import TrainingConfig
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.priors import Prior
from pyro_vmm.runtime.ranks import Ranks

# The hyper-priors ask a component for a share 1 / m_prior of the rows. Below this part of it, a component is unneeded.
LEAST_SHARE = 0.1
# Nats by which the log-weight of an unneeded component falls per epoch. Without it, the weight would fall by a learning
# rate a step, long after the component's share of the rows.
FADE = 3.0
# The most that a frozen component explains of any row: all of them together change p(z) by less than 1e-6.
NEGLIGIBLE = 1e-8
# Components leave together, once they are this part of those in training: each time, the training step changes its
# shape and has to be recorded anew.
LEAVING = 0.1


class Shares:
    """How much of an epoch's rows each component explains; the host reads nothing from the device before it ends.

    Arguments:
        prior: the prior of the components.
        ranks: the processes that train together.

    Attributes:
        total: responsibilities, summed over rows, (K,).
        largest: the largest responsibility for any row, (K,).
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
        """Add the counts of the other processes."""
        self.total = self.ranks.sum(self.total)
        self.largest = self.ranks.largest(self.largest)
        self.used = self.ranks.sum(self.used.int()) > 0


class Elimination:
    """Decides which components take part in training, and makes a model of these alone.

    A component that explains less than a tenth of 1 / m_prior of the rows for ``freeze_after`` epochs in a row fades
    out: its weight shrinks twentyfold an epoch. When it explains no row by more than 1e-8 it can be frozen: it leaves
    the encoder's pass over the pseudo-inputs, the mixture and the optimiser, and its absence does not change p(z). It
    stays in the whole model, with its last values. Components are frozen once those that can be are a tenth of all in
    training, or once the first of them has faded for ``freeze_after`` epochs. (The paper says that the VMM saves the
    computation for eliminated components, but not how.)

    Arguments:
        vae: the whole model, of K components.
        config: ``freeze_after`` and, for ``m_prior="batch"``, ``batch_size``.

    Attributes:
        model: the model to train: the whole one, or one without the frozen components.
        kept: its components, as positions in the whole model, (n,).
    """

    def __init__(self, vae: LatentVariableModel, config: TrainingConfig):
        prior = vae.prior
        prior.check()
        self.whole = self.model = vae
        # A prior with fixed weights is never pruned.
        free = prior.can_eliminate and prior.get_parameter("pi_logits").requires_grad
        self.after = config.freeze_after if free else None
        if self.after is not None:
            m_prior = cast(float | str, prior.m_prior)  # Prior.check requires it
            self.least = LEAST_SHARE / (config.batch_size if isinstance(m_prior, str) else m_prior)
        self.kept = torch.arange(prior.n_components, device=prior.origin.device)
        # The number of epochs in a row that each has been below the least share.
        self.below = torch.zeros_like(self.kept)

    @torch.no_grad()
    def end_epoch(self, shares: Tensor, largest: Tensor) -> Tensor | None:
        """Fade and freeze components; returns the positions (n',) of those that remain, or None if all n do.

        Arguments:
            shares: each component's share of the epoch's rows, by responsibility, (n,).
            largest: its largest responsibility for any row, (n,).
        """
        if self.after is None:
            return None
        self.below = torch.where(shares < self.least, self.below + 1, 0)
        fading = self.below >= self.after
        frozen = fading & (largest < NEGLIGIBLE)
        # A component that waits to leave fades no more: p(pi | alpha) would take smaller weights for a smaller alpha.
        self.model.prior.get_parameter("pi_logits").sub_(FADE * (fading & ~frozen))
        self.update_whole()
        enough = frozen.sum() >= LEAVING * len(frozen) or (self.below[frozen] >= 2 * self.after).any()
        if not (frozen.any() and enough):
            return None
        remain = (~frozen).nonzero().squeeze(1)
        self._keep(self.kept[remain], self.below[remain])
        return remain

    def update_whole(self) -> None:
        """Copy the trained values into the whole model."""
        if self.model is not self.whole:
            self.whole.absorb(self.model, self.kept)

    def _keep(self, kept: Tensor, below: Tensor) -> None:
        self.kept, self.below = kept, below
        everything = len(kept) == self.whole.prior.n_components
        self.model = self.whole if everything else self.whole.subset(kept)

    def state_dict(self) -> dict:
        """The components in training, and for how many epochs each has been below the least share."""
        return {"kept": self.kept.clone(), "below": self.below.clone()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`; the whole model already has its parameters of that time."""
        self._keep(state["kept"].to(self.kept.device), state["below"].to(self.kept.device))
