"""The Bayesian mixtures, equations (4) to (8): their centres are points, or guided by the encoder."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from pyro_vmm.distributions import Mixture, MixtureOfGaussians, MixtureOfStudents
from pyro_vmm.networks import inverse_softplus
from pyro_vmm.priors.base import EXPECTATIONS, OF_PSEUDO_INPUTS, Expectation, MPrior, Places, Prior, check_m_prior
from pyro_vmm.priors.covariances import Covariance, as_covariance
from pyro_vmm.priors.hyperpriors import HyperPrior, as_hyperprior
from pyro_vmm.priors.pseudo_inputs import Centres, PseudoInputs, as_pseudo_inputs
from pyro_vmm.runtime.checks import check_choice, check_positive

Responsibilities = Literal["held", "differentiated"]
RESPONSIBILITIES = get_args(Responsibilities)
# log pi of an unneeded component, relative to the largest: no row ever chooses it.
UNUSED = -30.0


class _BayesianMixture(Prior):
    """The hierarchy (5) to (8) and (4) and its MAP guide; subclasses define q(mu).

    The defaults are the paper's. Those of the estimators differ where the paper's did worse in measurements: they have
    "differentiated" ``responsibilities``, because "held" ones merge small or neighbouring clusters, and estimators of
    cells have the "reference" ``hyperprior``, with which they were measured.

    Arguments:
        latent_dim: D.
        n_components: K, the truncation of the Dirichlet process.
        hyperprior: the numbers of equations (5) to (8), or "paper" or "reference".
        m_prior: the hyper-priors weigh 1 / m_prior against the mean over rows: a component survives if it explains more
            than about one row in ``m_prior``. "batch" takes the size of the minibatch, as the authors' code does; a
            short last batch then moves the prior far.
        expectation: how the training steps take expectations over q(mu), "analytic" or "sampled".
        responsibilities: "held" holds q(c | z) fixed in the MAP step (the paper's EM); "differentiated" differentiates
            it, as in the authors' code, which then maximises log p(z) minus the entropy of q(c | z) and keeps
            neighbours apart.
        covariance: the family of the components' covariances: "full", "diagonal", "tied", "spherical", or a
            :class:`~pyro_vmm.priors.Covariance`.
    """

    trained_by_map = True
    can_eliminate = True
    can_place = True
    has_granularity = True
    takes = ("hyperprior", "m_prior", "expectation", "responsibilities", "component_covariance")
    per_component = ("pi_logits", "precision_raw")
    frozen_logits: Tensor

    def __init__(
        self,
        latent_dim: int,
        n_components: int,
        hyperprior: HyperPrior | str = "paper",
        m_prior: MPrior = 256,
        expectation: Expectation = "analytic",
        responsibilities: Responsibilities = "held",
        covariance: Covariance | str = "full",
    ):
        super().__init__(latent_dim, n_components)
        self.hyperprior = as_hyperprior(hyperprior)
        check_m_prior("m_prior", m_prior)
        check_choice("expectation", expectation, EXPECTATIONS)
        check_choice("responsibilities", responsibilities, RESPONSIBILITIES)
        self.m_prior, self.expectation, self.responsibilities = m_prior, expectation, responsibilities
        # These are the authors' coordinates, in which Adam takes the same path. Their alpha is our 1 / alpha.
        self.reciprocal_alpha_raw = nn.Parameter(torch.tensor(inverse_softplus(1.0)))
        self.pi_logits = nn.Parameter(torch.zeros(n_components))
        self.covariance = as_covariance(covariance)
        if not self.covariance.per_component:
            self.shared = ("precision_raw",)
        self.precision_raw = nn.Parameter(self.covariance.start(latent_dim, n_components))
        self._precision_hyperprior()  # it checks the numbers
        # The log-weights of components that a subset leaves out.
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
        """Log-weights of all components, the frozen ones at the end."""
        return torch.cat([self.pi_logits, self.frozen_logits]).log_softmax(-1)

    @property
    def precision_tril(self) -> Tensor:
        """Cholesky factors of the components' precisions, (K, D, D)."""
        return self.covariance.tril(self.precision_raw, self.latent_dim, self.n_components)

    def subset(self, kept: Tensor) -> Self:
        """A prior of components ``kept`` (n,) alone, with parameters of its own, to train in place of this one.

        The others are frozen: they keep their weights, and p(z) loses nothing but them. The hyper-priors are those of
        all K components, without the constant terms of frozen mu and Lambda.
        """
        subset = self.rows_of(kept)
        frozen = torch.ones_like(self.pi_logits, dtype=torch.bool)
        frozen[kept] = False
        subset.frozen_logits = torch.cat([self.pi_logits.detach()[frozen], self.frozen_logits])
        return subset

    @torch.no_grad()
    def place(self, places: Places, slots: Tensor, encoder: nn.Module) -> None:
        r"""Move components ``slots`` (n,) to n places, and take all weight from the others.

        The precisions are the MAP points of (8) given rows and centres; the hyper-priors count once. For full
        covariances they follow, for other families see :mod:`pyro_vmm.priors.covariances`.

        .. math:: \Lambda_k^{-1} = \frac{n_k (C_k + S_k) + V^{-1}}{n_k + \nu - D - 1}
        """
        self.pi_logits.fill_(UNUSED)
        self.pi_logits[slots] = (places.count / places.count.max()).log()
        self._place_centres(places, slots, encoder)
        tril = self.centres(encoder).tril
        spread = places.covariance if tril is None else places.covariance + (tril @ tril.mT)[slots]
        wishart = self.hyperprior.precision_tril(self.latent_dim, self.n_components, self.origin)
        count, scale = places.count[:, None, None], torch.eye(self.latent_dim).to(spread) / wishart.scale
        shared = not any(tensor is self.precision_raw for tensor in self.component_tensors().values())
        if shared:
            spread, count = (count * spread).sum(0) / count.sum(), count.sum()
        covariance = (count * spread + scale) / (count + wishart.df - self.latent_dim - 1)
        self.precision_raw[... if shared else slots] = self.covariance.raw(covariance)

    @abstractmethod
    def _place_centres(self, places: Places, slots: Tensor, encoder: nn.Module) -> None:
        """Move the centres of components ``slots`` (n,) as close to n places as possible."""

    @abstractmethod
    def centres(self, encoder: nn.Module | None) -> Centres:
        """q(mu)."""

    def forward(self, encoder: nn.Module | None = None) -> Mixture:
        return self.marginal(self.log_pi, self.centres(encoder), self.precision_tril)

    def clustering(self, encoder: nn.Module | None = None) -> Mixture:
        return self.expected(self.log_pi, self.centres(encoder), self.precision_tril)

    def sampled(self, encoder: nn.Module | None = None) -> Mixture:
        loc = self.q_mu(self.centres(encoder)).rsample()
        return self.marginal(self.log_pi, Centres(loc, None), self.precision_tril)

    def marginal(self, log_pi: Tensor, centres: Centres, precision_tril: Tensor) -> Mixture:
        """The mixture with the centres integrated out; log_pi (K,), precision_tril (K, D, D)."""
        return MixtureOfGaussians.from_precision(log_pi, centres.loc, precision_tril, centres.tril)

    def expected(self, log_pi: Tensor, centres: Centres, precision_tril: Tensor) -> Mixture:
        """The mixture of log-densities in expectation over q(mu); log_pi (K,), precision_tril (K, D, D)."""
        return MixtureOfGaussians.expected(log_pi, centres.loc, precision_tril, centres.tril)

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
    ) -> Mixture:
        """alpha, pi, mu and Lambda, equations (5) to (8), weighted by ``rows / m_prior``.

        With ``centres`` the expectations over q(mu) are in closed form, and the site ``mu`` holds its mean. The sites
        ``pi`` and ``precision``, which repeat others, are then left out: the MAP step does not need them.
        """
        d, tril = self.latent_dim, None if centres is None else centres.tril
        trained, n = self.n_components, self.n_components + len(self.frozen_logits)
        m_prior = (minibatch or rows) if isinstance(self.m_prior, str) else self.m_prior
        with poutine.scale(scale=rows / m_prior):
            alpha = pyro.sample("alpha", self.hyperprior.alpha(self.origin))
            log_pi = pyro.sample("log_pi", self.hyperprior.log_pi(alpha, n))
            components = pyro.plate("components", trained)
            with components:
                mu = pyro.sample("mu", self.hyperprior.mu(d, self.origin, tril))
            own = self.covariance.per_component
            with components if own else nullcontext():
                precision_tril = pyro.sample("precision_tril", self._precision_hyperprior(n))
        if not own:
            precision_tril = precision_tril.expand(trained, d, d)
        if mu.dim() != 2:
            raise ValueError(
                f"mu has shape {tuple(mu.shape)}, expected (K, D): draws can't be vectorised, "
                "so Predictive needs parallel=False, and an ELBO vectorize_particles=False"
            )
        if centres is None:
            pyro.deterministic("pi", log_pi.exp())
            pyro.deterministic("precision", precision_tril @ precision_tril.mT)
        return self.expected(log_pi[..., :trained], Centres(mu, tril), precision_tril)

    def _precision_hyperprior(self, n: int | None = None) -> dist.TorchDistribution:
        """Equation (8) on the family of covariances, of a mixture of n components."""
        of_all = self.hyperprior.precision_tril(self.latent_dim, n or self.n_components, self.origin)
        return self.covariance.hyperprior(of_all)

    def hierarchy_guide(self, encoder: nn.Module | None = None, centres: Centres | None = None) -> None:
        """Points for alpha, pi and Lambda; q(mu) for mu, or its mean where ``centres`` are given.

        The sites are masked: a point has no density, and the objective, which is empirical Bayes and no ELBO, has no
        entropy of q(mu).
        """
        with poutine.mask(mask=False):
            pyro.sample("alpha", dist.Delta(self.alpha))
            pyro.sample("log_pi", dist.Delta(self._all_log_pi, event_dim=1))
            components = pyro.plate("components", self.n_components)
            with components:
                q_mu = self.q_mu(self.centres(encoder)) if centres is None else dist.Delta(centres.loc, event_dim=1)
                pyro.sample("mu", q_mu)
            own, tril = self.covariance.per_component, self.precision_tril
            with components if own else nullcontext():
                pyro.sample("precision_tril", dist.Delta(tril if own else tril[0], event_dim=2))

    def per_row(self, p_z: Mixture, z: Tensor | None) -> Tensor:
        """c and z; the MAP step's objective loses the entropy of differentiated responsibilities."""
        if z is not None and self.responsibilities == "differentiated":
            p_z.remember(z)
            log_q_c = p_z.joint_log_prob(z).log_softmax(-1)
            pyro.factor("responsibility_entropy", (log_q_c.exp() * log_q_c).sum(-1))
        return super().per_row(p_z, z)


class GaussianMixture(_BayesianMixture):
    """The Bayesian, truncated-Dirichlet-process Gaussian mixture, with points as centres.

    Arguments:
        mu: initial centres, (K, D), such as draws from Normal(0, I) or an encoder's means of some rows.
        settings: ``hyperprior``, ``m_prior``, ``expectation``, ``responsibilities`` and ``covariance`` as in
            :class:`VampMixture`.
    """

    free_centres = True
    per_component = ("mu",)

    def __init__(self, mu: Tensor, **settings):
        if mu.dim() != 2:
            raise ValueError(f"mu has shape {tuple(mu.shape)}, expected (K, D)")
        super().__init__(mu.shape[1], len(mu), **settings)
        self.mu = nn.Parameter(mu.detach().clone())
        self.to(mu.dtype)

    @classmethod
    def build(cls, latent_dim: int, pseudo_inputs: PseudoInputs, settings: Mapping) -> Prior:
        return cls(torch.randn(len(pseudo_inputs), latent_dim), **settings)

    def centres(self, encoder: nn.Module | None = None) -> Centres:
        return Centres(self.mu, None)

    def _place_centres(self, places: Places, slots: Tensor, encoder: nn.Module) -> None:
        self.mu[slots] = places.loc


class StudentMixture(GaussianMixture):
    r""":class:`GaussianMixture` with Student's t distributions in place of normals: outliers don't widen a component.

    A precision :math:`\Lambda_k` is that of the normal whose scale the t mixes, see
    :class:`~pyro_vmm.distributions.MixtureOfStudents`, and has the hyper-prior (8). Training is that of normals, with c
    enumerated. Its components are not settled: the evidence of a Student's t with unknown parameters has no closed
    form.

    Arguments:
        mu: initial centres, (K, D).
        df: nu, the degrees of freedom of all components, positive; held fixed.
        settings: as in :class:`GaussianMixture`.
    """

    can_place = False
    takes = (*GaussianMixture.takes, "component_df")

    def __init__(self, mu: Tensor, df: float = 5.0, **settings):
        check_positive("df", df)
        super().__init__(mu, **settings)
        self.df = float(df)

    def marginal(self, log_pi: Tensor, centres: Centres, precision_tril: Tensor) -> Mixture:
        return MixtureOfStudents(log_pi, centres.loc, precision_tril, self.df)

    expected = marginal  # the centres are points


class VampMixture(_BayesianMixture):
    r"""The VampPrior Mixture Model: the encoder guides the centres by pseudo-inputs, equation (10).

    .. math:: q(\mu_k) = q_\phi(\mu; u_k), \qquad
              p(z) = \sum_k \pi_k\, \mathcal{N}(z;\ m_k, \Lambda_k^{-1} + S_k) \quad (11)

    Arguments:
        latent_dim: D.
        pseudo_inputs: initial u, (K, *event_shape), or a module of :mod:`pyro_vmm.priors.pseudo_inputs`.
        settings: ``hyperprior`` ("paper", "reference" or a :class:`HyperPrior`), ``m_prior``, ``expectation``
            ("analytic" or "sampled"), ``responsibilities`` ("held" or "differentiated"), ``covariance`` ("full",
            "diagonal", "tied" or "spherical").
    """

    takes = (*_BayesianMixture.takes, *OF_PSEUDO_INPUTS)

    def __init__(self, latent_dim: int, pseudo_inputs: Tensor | PseudoInputs, **settings):
        super().__init__(latent_dim, len(pseudo_inputs), **settings)
        self.pseudo_inputs = as_pseudo_inputs(pseudo_inputs)
        self.to(self.pseudo_inputs.u.dtype)

    @classmethod
    def build(cls, latent_dim: int, pseudo_inputs: PseudoInputs, settings: Mapping) -> Prior:
        return cls(latent_dim, pseudo_inputs, **settings)

    def centres(self, encoder: nn.Module) -> Centres:
        return self.pseudo_inputs.encode(encoder)

    def _place_centres(self, places: Places, slots: Tensor, encoder: nn.Module) -> None:
        """Give each component the pseudo-input encoded nearest to its place: its own, or one of the rows there."""
        own = self.centres(encoder).loc[slots]
        candidates = self.pseudo_inputs.like(places.rows.flatten(0, 1))
        # Place by place: a pseudo-cell can be encoded in each of many batches.
        encoded = torch.stack([self._with(self.pseudo_inputs.like(rows)).centres(encoder).loc for rows in places.rows])
        step = torch.cat([own.unsqueeze(1), encoded], 1) - places.loc.unsqueeze(1)  # (n, 1 + c, D)
        distance = torch.einsum("kci,kij,kcj->kc", step, torch.linalg.inv(places.covariance), step)
        nearest = distance.argmin(1) - 1
        moved = (nearest >= 0).nonzero().squeeze(1)
        chosen = moved * places.rows.shape[1] + nearest[moved]
        rows = candidates.state_dict()
        for name, tensor in self.component_tensors().items():
            if name.startswith("pseudo_inputs."):
                tensor[slots[moved]] = rows[name.removeprefix("pseudo_inputs.")][chosen]

    def _with(self, pseudo_inputs: PseudoInputs) -> "VampMixture":
        """This prior with other pseudo-inputs; the rest is shared."""
        other = copy.copy(self)
        other._modules = {**self._modules, "pseudo_inputs": pseudo_inputs}
        return other
