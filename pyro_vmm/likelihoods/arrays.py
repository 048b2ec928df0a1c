"""Likelihoods of vectors, images and arrays, and the registry of their names.

A likelihood is any callable from decoder output h (N, *event_shape) to a Pyro distribution over x (N, *event_shape).
Those below derive from :class:`Likelihood`, which says what networks, scaling and training need from them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vmm.distributions import LOG_TWO_PI
from pyro_vmm.networks import Asinh, SoftOneHot, inverse_softplus, positive
from pyro_vmm.runtime.checks import check_choice, check_positive, one_line
from pyro_vmm.runtime.registry import Registry

#: The scales of the noise: one number, or one for each feature.
Scale = Literal["scalar", "per_feature"]
SCALES = get_args(Scale)
# The start of a noise scale that neither the user nor the data have set.
DEFAULT_SCALE = 1.0
# So many categories are taken as they are; of more, one in so many has to occur.
SURELY_CODES, UNUSED_CODES = 256, 10
# The log-likelihood that the variance of a row costs at the start, in nats.
NATS = 200.0


class Likelihood(nn.Module, ABC):
    """The protocol of a likelihood of arrays: what networks, scaling, training and estimators need from it.

    Your own likelihood defines ``forward``, and those attributes and methods below that differ; with a noise scale it
    derives from :class:`LocationScale`. A name in :data:`LIKELIHOODS` makes it known to the estimators and to the
    command line: ``LIKELIHOODS["laplace"] = Laplace``.

    Arguments:
        event_shape: the shape of one observation.
    """

    #: P, the numbers that the decoder gives for each feature.
    outputs_per_feature = 1
    #: Whether values may be any real numbers, so that data may be shifted and stretched.
    any_real = False
    #: Whether there is a noise scale, which the argument ``initial_scale`` starts.
    has_noise_scale = False

    def __init__(self, event_shape: Sequence[int]):
        super().__init__()
        self.event_shape = torch.Size(event_shape)

    @classmethod
    def domain_options(cls, x: Tensor) -> dict:
        """Arguments that follow from all rows x (N, *event_shape), held-out ones too, such as ``n_categories``."""
        return {}

    def start(self, x: Tensor) -> dict:
        """Start what the user left open from training rows x (M, *event_shape); return it as arguments."""
        return {}

    @abstractmethod
    def forward(self, h: Tensor) -> TorchDistribution:
        """p(x | h): batch shape (N,), event shape ``event_shape``."""

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` if values of x (N, *event_shape) lie outside the support."""

    def features(self) -> list[nn.Module]:
        """Modules to put in front of an encoder, which turn x into features; defined for any real pseudo-input."""
        return []

    def independent(self, distribution: TorchDistribution) -> TorchDistribution:
        """Declare the features of an observation one event."""
        return distribution.to_event(len(self.event_shape))


class LocationScale(Likelihood):
    """A density of real values around h, with a learned noise scale by softplus, one number or one per feature.

    Arguments:
        event_shape: the shape of one observation.
        scale: "scalar" or "per_feature".
        initial_scale: the start of the scale, positive, in the units of x; None for 1, or for that of :meth:`start`.
    """

    any_real = True
    has_noise_scale = True

    def __init__(self, event_shape: Sequence[int], scale: Scale = "scalar", initial_scale: float | None = None):
        super().__init__(event_shape)
        check_choice("scale", scale, SCALES)
        if initial_scale is not None:
            check_positive("initial_scale", initial_scale)
        self.initial_scale = initial_scale
        shape = () if scale == "scalar" else self.event_shape
        first = DEFAULT_SCALE if initial_scale is None else initial_scale
        self.scale_raw = nn.Parameter(torch.full(shape, inverse_softplus(first)))

    @torch.no_grad()
    def start(self, x: Tensor) -> dict:
        r"""Start the noise where the variance of a row costs ``NATS`` nats, however many features it has.

        .. math:: \sum_g \mathrm{Var}(x_g) / (2 \sigma^2) = \mathrm{NATS}

        The KL to the prior costs some ten nats. If the variance of a row costs no more, components merge before the
        likelihood separates clusters; if it costs far more, the prior does not shape the latent space. A scale that the
        user has set, or that has been trained, stays.
        """
        untouched = torch.full_like(self.scale_raw, inverse_softplus(DEFAULT_SCALE))
        # Close is enough: another dtype rounds.
        if self.initial_scale is not None or not torch.allclose(self.scale_raw, untouched):
            return {}
        variance = float(x.var(dim=0, correction=0).sum())
        initial_scale = math.sqrt(variance / (2 * NATS)) if variance > 0 else 1.0
        self.scale_raw.fill_(inverse_softplus(initial_scale))
        return {"initial_scale": initial_scale}

    @property
    def scale(self) -> Tensor:
        """The noise scale, () or ``event_shape``."""
        return positive(self.scale_raw)


class SharedScaleNormal(dist.Independent):
    """``dist.Normal(loc, scale).to_event(event_dim)`` with a scale that all rows share.

    It sums the squares of an event before it scales them: that takes one pass over ``loc`` and the value.

    Arguments:
        loc: means, (..., *event_shape).
        scale: positive, () or ``event_shape``.
        event_dim: the number of dimensions of an event.
    """

    def __init__(self, loc: Tensor, scale: Tensor, event_dim: int, validate_args: bool | None = None):
        super().__init__(dist.Normal(loc, scale, validate_args=validate_args), event_dim, validate_args=validate_args)
        self.scale = scale

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape) + self.event_shape
        return SharedScaleNormal(self.base_dist.loc.expand(shape), self.scale, self.event_dim)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self.base_dist._validate_sample(value)
        # One kernel computes the squared differences, and another one their gradient.
        squares = F.mse_loss(*torch.broadcast_tensors(self.base_dist.loc, value), reduction="none")
        log_norm = self.scale.log() + 0.5 * LOG_TWO_PI
        if self.scale.dim():
            return -_sum_rightmost(0.5 * squares / self.scale.square() + log_norm, self.event_dim)
        squares = _sum_rightmost(squares, self.event_dim)
        return -0.5 * squares / self.scale.square() - self.event_shape.numel() * log_norm


def _sum_rightmost(values: Tensor, dims: int) -> Tensor:
    return cast(Tensor, sum_rightmost(values, dims))  # Pyro's function also takes numbers


class Normal(LocationScale):
    """Normal(h, scale) with a learned scale."""

    def forward(self, h: Tensor) -> TorchDistribution:
        return SharedScaleNormal(h, self.scale, len(self.event_shape))


class StudentT(LocationScale):
    """StudentT(df, h, scale) with learned scale and degrees of freedom (above 2, so that the variance is finite)."""

    def __init__(self, event_shape: Sequence[int], scale: Scale = "scalar", initial_scale: float | None = None):
        super().__init__(event_shape, scale, initial_scale)
        self.df_raw = nn.Parameter(torch.tensor(inverse_softplus(3.0)))

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, ()."""
        return 2.0 + F.softplus(self.df_raw)

    def forward(self, h: Tensor) -> TorchDistribution:
        return self.independent(dist.StudentT(self.df, h, self.scale))


class Bernoulli(Likelihood):
    """Bernoulli with logits h, for values 0 and 1."""

    def forward(self, h: Tensor) -> TorchDistribution:
        return self.independent(dist.Bernoulli(logits=h))

    def check(self, x: Tensor) -> None:
        between = "for values in between: likelihood='continuous_bernoulli'"
        _require(x, (x == 0) | (x == 1), "bernoulli", f"values 0 or 1 ({between})")


class ContinuousBernoulli(Likelihood):
    """Continuous Bernoulli with logits h, for values in [0, 1] (Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845)."""

    def forward(self, h: Tensor) -> TorchDistribution:
        return self.independent(dist.ContinuousBernoulli(logits=h))

    def check(self, x: Tensor) -> None:
        _require(x, (x >= 0) & (x <= 1), "continuous_bernoulli", "values in [0, 1]")


class Poisson(Likelihood):
    """Poisson with rate softplus(h), for counts."""

    def forward(self, h: Tensor) -> TorchDistribution:
        return self.independent(dist.Poisson(positive(h)))

    def check(self, x: Tensor) -> None:
        _require(x, (x >= 0) & (x == x.round()) & x.isfinite(), "poisson", "counts: integers 0, 1, 2, ...")

    def features(self) -> list[nn.Module]:
        return [Asinh()]


class Categorical(Likelihood):
    """Categorical with logits h (N, *event_shape, P), for integer codes 0 to P - 1 in every feature.

    Arguments:
        event_shape: the shape of one observation.
        n_categories: P, at least 2.
    """

    def __init__(self, event_shape: Sequence[int], n_categories: int):
        super().__init__(event_shape)
        if n_categories < 2:
            raise ValueError(f"n_categories={n_categories} should be at least 2")
        self.outputs_per_feature = n_categories

    @classmethod
    def domain_options(cls, x: Tensor) -> dict:
        """The number of categories: held-out rows may have a category that no other row has."""
        n = max(2, int(x.max()) + 1)
        if n > SURELY_CODES and n > UNUSED_CODES * (distinct := len(x.unique())) and (x == x.round()).all():
            raise ValueError(
                f"x holds {distinct} different values up to {n - 1}, which would make {n} categories of each feature; "
                f"number the categories from 0 on, or give n_categories={n} in likelihood_options"
            )
        return {"n_categories": n}

    def forward(self, h: Tensor) -> TorchDistribution:
        return self.independent(dist.Categorical(logits=h))

    def check(self, x: Tensor) -> None:
        inside = (x >= 0) & (x < self.outputs_per_feature) & (x == x.round())
        _require(x, inside, "categorical", f"values that are integer codes from 0 to {self.outputs_per_feature - 1}")

    def features(self) -> list[nn.Module]:
        return [SoftOneHot(self.outputs_per_feature)]


#: Classes by name; users may add their own. Other packages add theirs by entry points of this group.
LIKELIHOODS = Registry(
    "pyro_vmm.likelihoods",
    {
        "normal": Normal,
        "bernoulli": Bernoulli,
        "continuous_bernoulli": ContinuousBernoulli,
        "student_t": StudentT,
        "poisson": Poisson,
        "categorical": Categorical,
    },
)


class CustomLikelihood(Likelihood):
    """Any callable from decoder output to a Pyro distribution; the parameters of a module are trained too.

    Features in the batch shape of the distribution are declared one event.

    Arguments:
        event_shape: the shape of one observation.
        function: h (N, *event_shape) -> distribution, of batch shape (N,) or (N, *event_shape).
        outputs_per_feature: P; with more than 1, h is (N, *event_shape, P).
    """

    def __init__(
        self, event_shape: Sequence[int], function: Callable[[Tensor], TorchDistribution], outputs_per_feature: int = 1
    ):
        super().__init__(event_shape)
        self.function, self.outputs_per_feature = function, outputs_per_feature

    def forward(self, h: Tensor) -> TorchDistribution:
        rows = h.dim() - len(self.event_shape) - (self.outputs_per_feature > 1)
        return declare_events(of_pyro(self.function(h)), rows)

    def check(self, x: Tensor) -> None:
        """Call the function: it has to return a distribution that can score x."""
        for rows in x.split(1024):
            distribution = self._try(rows)
            try:
                support: Any = distribution.support
                while hasattr(support, "base_constraint"):
                    support = support.base_constraint
                _require(rows, support.check(rows), "given", f"values in {support}")
            except NotImplementedError:
                pass  # a distribution need not have one
            # The ends of a support may have no density: torch's Beta takes 0 and 1.
            check_density(distribution, rows)

    def _try(self, rows: Tensor) -> TorchDistribution:
        extra = (self.outputs_per_feature,) if self.outputs_per_feature > 1 else ()
        h = rows.new_zeros(rows.shape + extra)
        try:
            distribution = self(h)
        except Exception as error:  # a user's function may raise anything
            message = one_line(error)
            raise ValueError(f"likelihood can't take decoder output of shape {tuple(h.shape)}: {message}") from error
        shape = distribution.batch_shape + distribution.event_shape
        if shape != rows.shape:
            raise ValueError(
                f"likelihood returned a distribution of shape {tuple(shape)}, expected {tuple(rows.shape)}"
            )
        return distribution


def of_pyro(returned) -> TorchDistribution:
    """The value that a user's function returned; ``ValueError`` unless it is a Pyro distribution."""
    if isinstance(returned, TorchDistributionMixin):
        return returned
    what = f"the class {returned.__name__}" if isinstance(returned, type) else f"a {type(returned).__name__}"
    raise ValueError(
        f"likelihood returned {what}, expected a Pyro distribution, such as pyro.distributions.Normal(h, 1.0)"
    )


def check_density(distribution: TorchDistribution, rows: Tensor) -> None:
    """Raise ``ValueError`` where a row (M, ...) has a density of 0 or infinity."""
    finite = distribution.log_prob(rows).isfinite().reshape(len(rows), -1).all(1)
    if not finite.all():
        worst = rows[~finite][0]
        raise ValueError(
            f"the given likelihood has a density of 0 or infinity at {int((~finite).sum())} of {len(rows)} rows of x "
            f"where the decoder's output is 0, such as one with values from {worst.min():g} to {worst.max():g}; values "
            "at an end of its support may have to move inwards"
        )


def declare_events(distribution: TorchDistribution, rows: int) -> TorchDistribution:
    """A user's distribution with a batch shape of ``rows`` dimensions; all others are one event."""
    loose = len(distribution.batch_shape) - rows
    if loose < 0:
        raise ValueError(
            f"it returned a distribution of batch shape {tuple(distribution.batch_shape)}, not one per row"
        )
    return distribution.to_event(loose)


def _require(x: Tensor, inside: Tensor, name: str, expected: str) -> None:
    if not inside.all():
        # A support of vectors has one verdict per row: name the row's first value.
        values = x[~inside].flatten()
        raise ValueError(f"x holds the value {values[0].item():g}; the {name} likelihood expects {expected}")
