r"""The four priors on z, each a module whose ``forward(encoder)`` returns p(z), and a Pyro model/guide pair.

========================  ================================================  =========================================
prior                     p(z)                                              parameters, and the step that trains them
========================  ================================================  =========================================
:class:`StandardNormal`   Normal(0, I)                                      none
:class:`VampPrior`        :math:`K^{-1} \sum_k q(z; u_k)`                   u, SVI
:class:`GaussianMixture`  :math:`\sum_k \pi_k N(z; \mu_k, \Lambda_k^{-1})`  alpha, pi, mu, Lambda, MAP
:class:`VampMixture`      the same, :math:`\mu_k \sim q(\mu; u_k)`          alpha, pi, u, Lambda, MAP
========================  ================================================  =========================================

The sites are ``alpha``, ``log_pi`` (and ``pi``), ``mu``, ``precision_tril`` (and ``precision``), ``c`` and ``z``.
"""

import copy
import math
from numbers import Real

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vmm.checks import check_choice
from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.hyperpriors import HyperPrior, as_hyperprior
from pyro_vmm.networks import inverse_softplus, lower_cholesky
from pyro_vmm.pseudo_inputs import Centres, PseudoInputs

EXPECTATIONS = ("analytic", "sampled")
RESPONSIBILITIES = ("held", "differentiated")


def latent(p_z: MixtureOfGaussians, obs: Tensor | None = None) -> Tensor:
    """The sites ``c`` (enumerated in parallel) and ``z``; a mixture of one component has no ``c``."""
    if p_z.n_components == 1:
        return pyro.sample("z", p_z, obs=obs)
    c = pyro.sample("c", dist.Categorical(logits=p_z.log_weights), infer={"enumerate": "parallel"})
    return pyro.sample("z", p_z.component(c), obs=obs)


class Prior(nn.Module):
    """What all priors share; never used by itself.

    ``forward(encoder)`` returns p(z), a :class:`~pyro_vmm.distributions.MixtureOfGaussians` with ``log_prob``,
    ``component_log_prob``, ``responsibilities``, ``component(c).sample()``, ``sample`` and ``weights``. The encoder is
    an argument because the prior does not own it: it is trained by another step.

    Arguments:
        latent_dim: D.
        n_components: K.
    """

    #: Whether the parameters belong to the MAP step (else to the SVI step, with the networks).
    trained_by_map = False
    #: Whether components can be left out of training, see :meth:`subset`.
    can_eliminate = False

    def __init__(self, latent_dim: int, n_components: int):
        super().__init__()
        if latent_dim < 1 or n_components < 1:
            raise ValueError(f"latent_dim={latent_dim} and n_components={n_components} should be at least 1")
        self.latent_dim, self.n_components = latent_dim, n_components
        # Knows the dtype and the device when there are no parameters to ask.
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)

    def forward(self, encoder: nn.Module) -> MixtureOfGaussians:
        """p(z), with the centres integrated out."""
        raise NotImplementedError

    def clustering(self, encoder: nn.Module) -> MixtureOfGaussians:
        """The component log-densities that q(c | z) is made of; p(z) unless q(mu) has a say."""
        return self(encoder)

    def sampled(self, encoder: nn.Module) -> MixtureOfGaussians:
        """p(z) with the centres drawn from q(mu) instead of integrated out."""
        return self(encoder)

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Renumber the components in place: number k becomes what ``order[k]`` was, (K,)."""
        for parameter in self.parameters():
            if parameter.dim():  # alpha is shared by all
                parameter.copy_(parameter[order])

    def subset(self, kept: Tensor) -> "Prior":
        """A prior of components ``kept`` (n,) alone, with parameters of its own, to train in place of this one."""
        raise NotImplementedError

    @torch.no_grad()
    def absorb(self, subset: "Prior", kept: Tensor) -> None:
        """Take over what :meth:`subset` has learned; the other components stay as they are."""
        for parameter, learned in zip(self.parameters(), subset.parameters(), strict=True):
            if parameter.dim():
                parameter[kept] = learned
            else:
                parameter.copy_(learned)

    def hierarchy(
        self,
        rows: int,
        encoder: nn.Module | None = None,
        centres: Centres | None = None,
        minibatch: int | None = None,
    ) -> MixtureOfGaussians:
        """Declare the sites above the plate of data, for the model.

        ``rows`` is the size of that plate; ``minibatch`` is M of the minibatch that they are a part of, if so.
        """
        return self(encoder)

    def hierarchy_guide(self, encoder: nn.Module | None = None, centres: Centres | None = None) -> None:
        """Declare the same sites for the guide."""

    def model(
        self,
        z: Tensor | None = None,
        encoder: nn.Module | None = None,
        centres: Centres | None = None,
        rows: int = 1,
        log_factors: Tensor | None = None,
    ) -> Tensor:
        """The sites above the plate, then c and z (M, D) for every row; with z, what the MAP step maximises, times M.

        Arguments:
            z: draws from q(z; x), (M, D); None to sample.
            encoder: what guides the centres.
            centres: q(mu), for expectations over it in closed form; None to sample mu.
            rows: M, when z is None; that of the whole minibatch, when z is a part of it.
            log_factors: what is added to log pi in each row, (M, K); see :mod:`pyro_vmm.balance`.
        """
        held = rows if z is None else len(z)
        p_z = self.hierarchy(held, encoder, centres, max(rows, held))
        if log_factors is not None:
            p_z = p_z.reweighted(log_factors)
        with pyro.plate("data", held):
            return self.per_row(p_z, z)

    def per_row(self, p_z: MixtureOfGaussians, z: Tensor | None) -> Tensor:
        """The sites inside the plate of data, for the model: c and z (M, D), given or drawn."""
        return latent(p_z, obs=z)

    def guide(
        self,
        z: Tensor | None = None,
        encoder: nn.Module | None = None,
        centres: Centres | None = None,
        rows: int = 1,
        log_factors: Tensor | None = None,
    ) -> None:
        """The latent sites above the plate; c is enumerated. The signature is the model's."""
        self.hierarchy_guide(encoder, centres)


class StandardNormal(Prior):
    """Normal(0, I): one component, no clusters.

    Arguments:
        latent_dim: D.
    """

    def __init__(self, latent_dim: int):
        super().__init__(latent_dim, 1)

    def forward(self, encoder: nn.Module | None = None) -> MixtureOfGaussians:
        identity = torch.eye(self.latent_dim, dtype=self.origin.dtype, device=self.origin.device)
        return MixtureOfGaussians.from_precision(self.origin.new_zeros(1), self.origin[None], identity[None])


class VampPrior(Prior):
    r"""The VampPrior of Tomczak & Welling (AISTATS 2018, arXiv:1705.07120): :math:`p(z) = K^{-1} \sum_k q(z; u_k)`.

    Arguments:
        latent_dim: D.
        pseudo_inputs: initial u, (K, *event_shape), or a module of :mod:`pyro_vmm.pseudo_inputs`.
    """

    def __init__(self, latent_dim: int, pseudo_inputs: Tensor | PseudoInputs):
        super().__init__(latent_dim, len(pseudo_inputs))
        self.pseudo_inputs = _as_module(pseudo_inputs)

    def forward(self, encoder: nn.Module) -> MixtureOfGaussians:
        components = self.pseudo_inputs.encode(encoder)
        log_weights = torch.full_like(components.loc[:, 0], self.n_components).log().neg()
        return MixtureOfGaussians.from_covariance(log_weights, components.loc, components.tril)


class _BayesianMixture(Prior):
    """The hierarchy (5) to (8) and (4) and its MAP guide; subclasses say what q(mu) is.

    Arguments:
        latent_dim: D.
        n_components: K, the truncation of the Dirichlet process.
        hyperprior: the numbers of equations (5) to (8), or "paper" or "reference".
        m_prior: the hyper-priors weigh 1 / m_prior against the mean over rows: a component survives if it explains more
            than about one row in ``m_prior``. "batch" takes the rows at hand, as the authors' code does; a short last
            batch then hits the prior hard.
        expectation: over q(mu) in the training steps, "analytic" or "sampled".
        responsibilities: q(c | z) "held" fixed in the MAP step (the paper's EM), or "differentiated" through as in the
            authors' code, which then maximises log p(z) minus the entropy of q(c | z) and keeps neighbours apart.
    """

    trained_by_map = True
    can_eliminate = True

    def __init__(
        self,
        latent_dim: int,
        n_components: int,
        hyperprior: HyperPrior | str = "paper",
        m_prior: float | str = 256,
        expectation: str = "analytic",
        responsibilities: str = "held",
    ):
        super().__init__(latent_dim, n_components)
        self.hyperprior = as_hyperprior(hyperprior)
        self.m_prior = _m_prior(m_prior)
        check_choice("expectation", expectation, EXPECTATIONS)
        check_choice("responsibilities", responsibilities, RESPONSIBILITIES)
        self.expectation, self.responsibilities = expectation, responsibilities
        # The authors' coordinates: Adam takes the same path in them. Their alpha is our 1 / alpha.
        self.reciprocal_alpha_raw = nn.Parameter(torch.tensor(inverse_softplus(1.0)))
        self.pi_logits = nn.Parameter(torch.zeros(n_components))
        raw = torch.eye(latent_dim) * inverse_softplus(1.0)
        self.precision_raw = nn.Parameter(raw.repeat(n_components, 1, 1))
        # Of the components that a subset leaves out.
        self.register_buffer("frozen_logits", torch.empty(0), persistent=False)

    @property
    def alpha(self) -> Tensor:
        """The concentration, ()."""
        return F.softplus(self.reciprocal_alpha_raw).reciprocal()

    @property
    def log_pi(self) -> Tensor:
        """Log-weights, (K,)."""
        return self._all_log_pi[: self.n_components]

    @property
    def _all_log_pi(self) -> Tensor:
        """Those of frozen components too, at the end."""
        return torch.cat([self.pi_logits, self.frozen_logits]).log_softmax(-1)

    @property
    def precision_tril(self) -> Tensor:
        """Cholesky factors of the components' precisions, (K, D, D)."""
        return lower_cholesky(self.precision_raw)

    def subset(self, kept: Tensor) -> "_BayesianMixture":
        """A prior of components ``kept`` (n,) alone, with parameters of its own, to train in place of this one.

        The others are frozen: p(z) loses them and nothing else, as they keep their weights. The hyper-priors are those
        of all K components; the terms of frozen mu and Lambda, which are constant, are left out.
        """
        subset = copy.deepcopy(self)
        frozen = torch.ones_like(self.pi_logits, dtype=torch.bool)
        frozen[kept] = False
        subset.frozen_logits = torch.cat([self.pi_logits.detach()[frozen], self.frozen_logits])
        for module in subset.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim():
                    values = parameter.detach()[kept].clone()
                    setattr(module, name, nn.Parameter(values, requires_grad=parameter.requires_grad))
        subset.n_components = len(kept)
        return subset

    def centres(self, encoder: nn.Module | None) -> Centres:
        """q(mu)."""
        raise NotImplementedError

    def forward(self, encoder: nn.Module | None = None) -> MixtureOfGaussians:
        loc, tril = self.centres(encoder)
        return MixtureOfGaussians.from_precision(self.log_pi, loc, self.precision_tril, tril)

    def clustering(self, encoder: nn.Module | None = None) -> MixtureOfGaussians:
        loc, tril = self.centres(encoder)
        return MixtureOfGaussians.expected(self.log_pi, loc, self.precision_tril, tril)

    def sampled(self, encoder: nn.Module | None = None) -> MixtureOfGaussians:
        loc = self.q_mu(self.centres(encoder)).rsample()
        return MixtureOfGaussians.from_precision(self.log_pi, loc, self.precision_tril)

    @staticmethod
    def q_mu(centres: Centres) -> dist.TorchDistribution:
        """q(mu) as a distribution: batch shape (K,), event shape (D,)."""
        if centres.tril is None:
            return dist.Delta(centres.loc, event_dim=1)
        return dist.MultivariateNormal(centres.loc, scale_tril=centres.tril)

    def hierarchy(
        self,
        rows: int,
        encoder: nn.Module | None = None,
        centres: Centres | None = None,
        minibatch: int | None = None,
    ) -> MixtureOfGaussians:
        """alpha, pi, mu and Lambda, equations (5) to (8), weighed by ``rows / m_prior``.

        With ``centres`` the expectations over q(mu) are in closed form, and the site ``mu`` holds its mean. The sites
        ``pi`` and ``precision``, which repeat others, are left out then: the MAP step would make them for nobody.
        """
        d, tril = self.latent_dim, None if centres is None else centres.tril
        trained, n = self.n_components, self.n_components + len(self.frozen_logits)
        with poutine.scale(scale=rows / ((minibatch or rows) if self.m_prior == "batch" else self.m_prior)):
            alpha = pyro.sample("alpha", self.hyperprior.alpha(self.origin))
            log_pi = pyro.sample("log_pi", self.hyperprior.log_pi(alpha, n))
            with pyro.plate("components", trained):
                mu = pyro.sample("mu", self.hyperprior.mu(d, self.origin, tril))
                precision_tril = pyro.sample("precision_tril", self.hyperprior.precision_tril(d, n, self.origin))
        if mu.dim() != 2:
            raise ValueError(f"mu has shape {tuple(mu.shape)}, expected (K, D): Predictive needs parallel=False")
        if centres is None:
            pyro.deterministic("pi", log_pi.exp())
            pyro.deterministic("precision", precision_tril @ precision_tril.mT)
        return MixtureOfGaussians.expected(log_pi[..., :trained], mu, precision_tril, tril)

    def hierarchy_guide(self, encoder: nn.Module | None = None, centres: Centres | None = None) -> None:
        """Points for alpha, pi and Lambda; q(mu) for mu, or its mean where ``centres`` are given.

        Masked: a point has no density, and the objective holds no entropy of q(mu), being empirical Bayes, not an ELBO.
        """
        with poutine.mask(mask=False):
            pyro.sample("alpha", dist.Delta(self.alpha))
            pyro.sample("log_pi", dist.Delta(self._all_log_pi, event_dim=1))
            with pyro.plate("components", self.n_components):
                q_mu = self.q_mu(self.centres(encoder)) if centres is None else dist.Delta(centres.loc, event_dim=1)
                pyro.sample("mu", q_mu)
                pyro.sample("precision_tril", dist.Delta(self.precision_tril, event_dim=2))

    def per_row(self, p_z: MixtureOfGaussians, z: Tensor | None) -> Tensor:
        """c and z; differentiated responsibilities take their entropy off what the MAP step maximises."""
        if z is not None and self.responsibilities == "differentiated":
            p_z.remember(z)
            log_q_c = p_z.joint_log_prob(z).log_softmax(-1)
            pyro.factor("responsibility_entropy", (log_q_c.exp() * log_q_c).sum(-1))
        return super().per_row(p_z, z)


class GaussianMixture(_BayesianMixture):
    """The Bayesian, truncated-Dirichlet-process Gaussian mixture, its centres points.

    Arguments:
        mu: initial centres, (K, D), such as draws from Normal(0, I) or an encoder's means of some rows.
        settings: ``hyperprior``, ``m_prior``, ``expectation`` and ``responsibilities`` as for :class:`VampMixture`.
    """

    def __init__(self, mu: Tensor, **settings):
        if mu.dim() != 2:
            raise ValueError(f"mu has shape {tuple(mu.shape)}, expected (K, D)")
        super().__init__(mu.shape[1], len(mu), **settings)
        self.mu = nn.Parameter(mu.detach().clone())
        self.to(mu.dtype)

    def centres(self, encoder: nn.Module | None = None) -> Centres:
        return Centres(self.mu, None)


class VampMixture(_BayesianMixture):
    r"""The VampPrior Mixture Model: the centres guided by the encoder on pseudo-inputs, equation (10).

    .. math:: q(\mu_k) = q_\phi(\mu; u_k), \qquad
              p(z) = \sum_k \pi_k\, \mathcal{N}(z;\ m_k, \Lambda_k^{-1} + S_k) \quad (11)

    Arguments:
        latent_dim: D.
        pseudo_inputs: initial u, (K, *event_shape), or a module of :mod:`pyro_vmm.pseudo_inputs`.
        settings: ``hyperprior`` ("paper", "reference" or a :class:`HyperPrior`), ``m_prior``, ``expectation``
            ("analytic" or "sampled"), ``responsibilities`` ("held" or "differentiated").
    """

    def __init__(self, latent_dim: int, pseudo_inputs: Tensor | PseudoInputs, **settings):
        super().__init__(latent_dim, len(pseudo_inputs), **settings)
        self.pseudo_inputs = _as_module(pseudo_inputs)

    def centres(self, encoder: nn.Module) -> Centres:
        return self.pseudo_inputs.encode(encoder)


PRIORS: dict[str, type[Prior]] = {
    "standard_normal": StandardNormal,
    "vamp": VampPrior,
    "gmm": GaussianMixture,
    "vmm": VampMixture,
}


def _as_module(pseudo_inputs: Tensor | PseudoInputs) -> PseudoInputs:
    return pseudo_inputs if isinstance(pseudo_inputs, PseudoInputs) else PseudoInputs(pseudo_inputs)


def _m_prior(value: float | str) -> float | str:
    if value == "batch" or (isinstance(value, Real) and 0 < value < math.inf):
        return value
    raise ValueError(f"m_prior={value!r} should be a positive number or 'batch'")
