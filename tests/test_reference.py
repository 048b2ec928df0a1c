"""Agreement with the authors' own classes, by the float64 values and gradients of reference_fixtures.npz."""

from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vmm.models.elbo import Elbo
from pyro_vmm.priors import GaussianMixture, VampMixture, VampPrior
from pyro_vmm.priors.hyperpriors import HYPERPRIORS, HyperPrior

FIXTURES = np.load(Path(__file__).parent / "reference_fixtures.npz")
EXACT = {"rtol": 0.0, "atol": 1e-9}
PRIORS = ["gmm", "vmm"]


def fixture(name: str) -> torch.Tensor:
    return torch.as_tensor(FIXTURES[name])


class StubEncoder(nn.Module):
    """Returns the fixture's q(mu), whatever the input."""

    def __init__(self):
        super().__init__()
        self.m, self.tril = nn.Parameter(fixture("in_m")), nn.Parameter(fixture("in_cholS"))

    def forward(self, u):
        return dist.MultivariateNormal(self.m, scale_tril=self.tril.tril())


def reference_prior(kind: str, responsibilities: str = "differentiated", hyperprior="reference"):
    """The prior at the fixture's parameters, with the authors' hyper-priors weighed by the batch of five rows."""
    settings = {"hyperprior": hyperprior, "m_prior": "batch", "responsibilities": responsibilities}
    prior = (
        VampMixture(3, torch.zeros(4, 2), **settings) if kind == "vmm" else GaussianMixture(fixture("in_m"), **settings)
    )
    with torch.no_grad():
        prior.reciprocal_alpha_raw.copy_(fixture(f"{kind}_value_alpha_raw"))
        prior.pi_logits.copy_(fixture("in_pi_logits"))
        prior.precision_raw.copy_(precision_raw(fixture(f"{kind}_value_L_raw")))
    return prior.double()


def precision_raw(raw: torch.Tensor) -> torch.Tensor:
    """TensorFlow Probability's order of a 3x3 lower triangle, (K, 6) -> (K, 3, 3)."""
    zero = torch.zeros_like(raw[:, 0])
    rows = [(raw[:, 3], zero, zero), (raw[:, 5], raw[:, 4], zero), (raw[:, 2], raw[:, 1], raw[:, 0])]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def map_loss(prior, encoder, z=None):
    z = fixture("in_z") if z is None else z
    return Elbo().differentiable_loss(prior.model, prior.guide, z, encoder, prior.centres(encoder)) / len(z)


@pytest.mark.parametrize("kind", PRIORS)
def test_densities(kind):
    prior, encoder, z = reference_prior(kind), StubEncoder(), fixture("in_z")
    p_z, clustering = prior(encoder), prior.clustering(encoder)
    torch.testing.assert_close(prior.precision_tril, fixture("in_L"), **EXACT)
    torch.testing.assert_close(p_z.component_log_prob(z), fixture(f"{kind}_log_prob_pz_c"), **EXACT)
    torch.testing.assert_close(p_z.log_prob(z), fixture(f"{kind}_log_prob_pz"), **EXACT)
    torch.testing.assert_close(p_z.loc, fixture(f"{kind}_pz_c_mean"), **EXACT)
    torch.testing.assert_close(p_z.covariance, fixture(f"{kind}_pz_c_cov"), **EXACT)
    torch.testing.assert_close(clustering.component_log_prob(z), fixture(f"{kind}_log_prob_z_c"), **EXACT)
    torch.testing.assert_close(clustering.responsibilities(z), fixture(f"{kind}_qc"), **EXACT)


@pytest.mark.parametrize("kind", PRIORS)
def test_hyperpriors(kind):
    prior, encoder = reference_prior(kind), StubEncoder()
    centres = prior.centres(encoder)
    guide = poutine.trace(prior.guide).get_trace(None, encoder, centres)
    model = poutine.trace(poutine.replay(prior.model, guide)).get_trace(None, encoder, centres)
    model.compute_log_prob()
    log_prob = {name: site["unscaled_log_prob"] for name, site in model.nodes.items() if "unscaled_log_prob" in site}
    torch.testing.assert_close(log_prob["alpha"], fixture(f"{kind}_log_prior_prob_alpha"), **EXACT)
    torch.testing.assert_close(log_prob["log_pi"], fixture(f"{kind}_log_prior_prob_pi"), **EXACT)
    torch.testing.assert_close(log_prob["mu"], fixture(f"{kind}_log_prior_prob_mu"), **EXACT)
    torch.testing.assert_close(log_prob["precision_tril"], fixture(f"{kind}_log_prior_prob_L"), **EXACT)


@pytest.mark.parametrize("kind", PRIORS)
def test_wishart_scale(kind):
    wishart = HYPERPRIORS["reference"].precision_tril(3, 4, torch.zeros(1))
    torch.testing.assert_close(wishart.scale.sqrt() * torch.eye(3), fixture(f"{kind}_wishart_scale_tril"), **EXACT)


@pytest.mark.parametrize("kind", PRIORS)
def test_m_step_loss(kind):
    loss = map_loss(reference_prior(kind), StubEncoder())
    torch.testing.assert_close(loss, fixture(f"{kind}_m_step_loss"), **EXACT)


@pytest.mark.parametrize("kind", PRIORS)
def test_m_step_loss_without_hyperpriors(kind):
    prior = reference_prior(kind)
    prior.m_prior = 1e300
    torch.testing.assert_close(map_loss(prior, StubEncoder()), fixture(f"{kind}_m_step_loss_MLE"), **EXACT)


@pytest.mark.parametrize("kind", PRIORS)
@pytest.mark.parametrize(("responsibilities", "key"), [("differentiated", "grad"), ("held", "grad_stopq")])
def test_m_step_gradients(kind, responsibilities, key):
    prior, encoder = reference_prior(kind, responsibilities), StubEncoder()
    map_loss(prior, encoder).backward()
    centre = encoder.m if kind == "vmm" else prior.mu
    torch.testing.assert_close(prior.reciprocal_alpha_raw.grad, fixture(f"{kind}_{key}_alpha_raw"), **EXACT)
    torch.testing.assert_close(prior.pi_logits.grad, fixture(f"{kind}_{key}_pi_logits"), **EXACT)
    torch.testing.assert_close(prior.precision_raw.grad, precision_raw(fixture(f"{kind}_{key}_L_raw")), **EXACT)
    torch.testing.assert_close(centre.grad, fixture(f"{kind}_{key}_m"), **EXACT)
    if kind == "vmm":
        torch.testing.assert_close(encoder.tril.grad, fixture(f"{kind}_{key}_cholS").tril(), **EXACT)


def test_vamp_prior():
    prior, encoder, z = VampPrior(3, torch.zeros(4, 2)), StubEncoder(), fixture("in_z")
    p_z = prior(encoder)
    torch.testing.assert_close(p_z.component_log_prob(z), fixture("vamp_log_prob_pz_c"), **EXACT)
    torch.testing.assert_close(p_z.log_prob(z), fixture("vamp_log_prob_pz"), **EXACT)
    torch.testing.assert_close(p_z.responsibilities(z), fixture("vamp_cluster_probabilities"), **EXACT)


def test_paper_preset_differs_by_the_jacobian_and_the_exponent():
    """InverseGamma(alpha) = Gamma(1 / alpha) / alpha^2, and K^(1/D) instead of K^(2/D)."""
    alpha, paper, reference = torch.tensor(0.7), HYPERPRIORS["paper"], HYPERPRIORS["reference"]
    difference = paper.alpha(alpha).log_prob(alpha) - reference.alpha(alpha).log_prob(alpha)
    torch.testing.assert_close(difference, -2 * alpha.log())
    ratio = reference.precision_tril(3, 4, alpha).scale / paper.precision_tril(3, 4, alpha).scale
    torch.testing.assert_close(ratio, torch.tensor(4 ** (1 / 3)))
    assert HyperPrior() == paper
