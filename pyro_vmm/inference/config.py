"""How to train."""

import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from pyro_vmm.runtime.checks import check_choice, check_share
from pyro_vmm.runtime.precision import PRECISIONS, Precision
from pyro_vmm.runtime.settings import (
    POSITIVE,
    TRUTH,
    WHOLE,
    Values,
    check_settings,
    one_of,
    or_never,
    or_none,
    resumable,
    setting,
    settings,
    suggesting,
)

Monitor = Literal["val_elbo", "val_nmi"]
MONITORS = get_args(Monitor)
Capture = Literal["cpu", "auto", True, False]
CAPTURES = get_args(Capture)


@settings
class Optimisation:
    """How parameters are trained, in every model."""

    title: ClassVar[str] = "training"

    epochs: int = setting(
        default=300,
        help="passes over the data, at most",
        values=WHOLE,
        common=True,
        metavar="N",
        resume="always",
    )
    batch_size: int = setting(
        default=256, help="rows in a minibatch, of all processes together", values=WHOLE, metavar="M"
    )
    learning_rate: float = setting(
        default=5e-4, help="of the networks", values=POSITIVE, common=True, metavar="R", resume="if diverged"
    )
    decay_fraction: float = setting(
        default=0.0,
        help="share of the epochs, the last, over which the rates fall",
        values=Values(check_share, float),
        metavar="F",
    )
    patience: int | None = setting(
        default=50,
        help="stop after N epochs without improvement; 0 for never",
        values=or_never(WHOLE),
        metavar="N",
        resume="always",
    )
    checkpoint_every: int = setting(default=10, help="epochs", values=WHOLE, metavar="N", resume="always")


@settings
class Monitored:
    """The criterion of early stopping, where there is a choice."""

    title: ClassVar[str] = "training"

    monitor: Monitor = setting(
        default="val_elbo",
        help="what improvement is measured by; arrays only, val_nmi uses labels",
        values=one_of(MONITORS),
    )


@settings
class Alternation(Optimisation):
    """How SVI steps and MAP steps alternate."""

    prior_learning_rate: float | None = setting(
        default=None,
        help="of the prior",
        values=or_none(POSITIVE),
        metavar="R",
        unset="that of the networks",
        resume="if diverged",
    )
    plateau: float | None = setting(
        default=None,
        help="once 200 steps raise the ELBO by fewer nats, the rates fall and training ends; 0 for never",
        values=or_never(POSITIVE),
        metavar="NATS",
        unset="0",
        resume="always",
    )
    reuse_draws: bool = setting(
        default=False, help="encode rows and pseudo-inputs once an iteration, not twice", values=TRUTH
    )
    freeze_after: int | None = setting(
        default=10,
        help="components without rows leave training after N epochs; 0 for never",
        values=or_never(WHOLE),
        metavar="N",
    )
    capture: Capture = setting(
        default="cpu",
        help="record steps and repeat the recording, also those of your own code and on a GPU (experimental)",
        values=Values(lambda name, value: check_choice(name, value, CAPTURES), bool),
        resume="always",
    )
    precision: Precision = setting(
        default="float32",
        help="of the networks' products; bf16 halves the time of large networks on recent CPUs",
        values=one_of(PRECISIONS),
    )


@suggesting
@dataclass(kw_only=True, unsafe_hash=True)
class TrainingConfig(Alternation, Monitored):
    """How to train. A configuration does not change once it is made.

    A subclass adds settings as fields, see :func:`~pyro_vmm.runtime.settings.setting`, and overrides
    :meth:`learning_rates` or :meth:`adjust_gradients`; estimators take an object of it as ``training``.

    Arguments:
        epochs: passes over the data, at most.
        batch_size: rows in a minibatch, of all processes together; the last one of an epoch may be shorter.
        learning_rate: the learning rate of Adam in the SVI step.
        prior_learning_rate: the learning rate of Adam in the MAP step; None for the same.
        decay_fraction: the share of ``epochs``, at the end, over which both learning rates fall to zero, along a half
            cosine.
        patience: stop after so many epochs without a better ``monitor``; None for never.
        plateau: in nats. Once 200 steps, or three epochs if these are more, raise the ELBO by less, the rates begin to
            fall, and training ends when they reach zero: over the share ``decay_fraction`` of all epochs trained.
            The ELBO is that of the validation rows if there are any. None for never.
        monitor: "val_elbo", or "val_nmi", which uses the validation rows' labels.
        reuse_draws: take the gradients of both steps from one encoding of the rows and of the pseudo-inputs, instead of
            encoding both again for the MAP step. Its draws of z and its q(mu) are then an update older than those of
            Algorithm 1, and the draws have the noise of dropout.
        freeze_after: a component that explains next to nothing for so many epochs leaves training, see
            :class:`~pyro_vmm.inference.Elimination`; None for never.
        checkpoint_every: epochs between checkpoints, where a file is given.
        seed: the seed of the order of the data and of all draws.
        capture: whether to record the operations of a training step and repeat the recording, which gives the same
            numbers sooner: "cpu" on a CPU, for models of this package's and torch's code; "auto" for every model, with
            a warning where it can't be recorded; True for an error there; False for never. On a GPU "auto" and True
            record CUDA graphs: that is experimental and has never run on one yet. Several processes, which have to
            communicate, never record.
        precision: the precision of the networks in training: "float32"; "bf16", bfloat16, in which large networks take
            half the time on CPUs with instructions for it; or "tf32" on a GPU. On a GPU the last two are experimental
            and have never run yet, see :mod:`pyro_vmm.runtime.precision`.
    """

    seed: int = setting(default=0, help="of all draws", option=None, resume="always")

    def __post_init__(self):
        check_settings(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def learning_rates(self, epoch: int) -> tuple[float, float]:
        """The learning rates of the SVI step and of the MAP step in an epoch, counted from 0."""
        left, falling = self.epochs - epoch, round(self.decay_fraction * self.epochs)
        factor = 1.0 if left > falling else 0.5 - 0.5 * math.cos(math.pi * left / (falling + 1))
        return factor * self.learning_rate, factor * (self.prior_learning_rate or self.learning_rate)

    def adjust_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Change the gradients of an SVI or MAP step in place, before Adam takes them; here they stay unchanged.

        A subclass may limit their norm or add noise to them. Each of several processes has the whole gradient.

        Arguments:
            parameters: the parameters of the step; a gradient is None if the loss does not depend on its parameter.
        """


#: The settings that may differ between an interrupted run and its continuation.
RESUMABLE = resumable(TrainingConfig, "always")
#: The settings that may also differ if the interrupted run diverged.
RATES = resumable(TrainingConfig, "if diverged")
