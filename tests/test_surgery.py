"""ELBO surgery against closed forms of a linear-Gaussian model, and the identities of equation (12)."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vmm.evaluation import surgery
from pyro_vmm.evaluation.surgery import elbo_surgery
from pyro_vmm.models import VAE
from pyro_vmm.priors import StandardNormal, VampMixture

SHRINK, POSTERIOR_SCALE, NOISE = 0.5, 0.7, 0.6


class LinearEncoder(nn.Module):
    """q(z; x) = Normal(SHRINK x, POSTERIOR_SCALE^2) in one dimension."""

    def forward(self, x):
        return dist.Normal(SHRINK * x, POSTERIOR_SCALE).to_event(1)


class Gaussian(nn.Module):
    """p(x | z) = Normal(z, NOISE^2)."""

    def forward(self, z):
        return dist.Normal(z, NOISE).to_event(1)


@pytest.fixture
def vae():
    return VAE(LinearEncoder(), nn.Identity(), Gaussian(), StandardNormal(1))


@pytest.fixture
def x():
    return torch.randn(300, 1)


def test_terms_agree_with_closed_forms(vae, x):
    found = elbo_surgery(vae, x, n_samples=2000, n_marginal=100)
    mean, variance = SHRINK * x, POSTERIOR_SCALE**2
    distortion = 0.5 * (math.log(2 * math.pi * NOISE**2) + ((x - mean) ** 2 + variance) / NOISE**2).mean()
    rate = 0.5 * (variance + mean**2 - 1 - math.log(variance)).mean()
    evidence = dist.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(x).mean()
    assert found["distortion"] == pytest.approx(distortion.item(), abs=0.01)
    assert found["rate"] == pytest.approx(rate.item(), abs=0.01)
    assert found["log_px"] == pytest.approx(evidence.item(), abs=0.01)


def test_marginal_kl_agrees_with_quadrature(vae, x):
    found = elbo_surgery(vae, x, n_samples=400)
    grid = torch.linspace(-6, 6, 4001)
    q_z = dist.Normal(SHRINK * x, POSTERIOR_SCALE).log_prob(grid).logsumexp(0) - math.log(len(x))
    expected = torch.trapezoid(q_z.exp() * (q_z - dist.Normal(0.0, 1.0).log_prob(grid)), grid)
    assert found["marginal_kl"] == pytest.approx(expected.item(), abs=0.01)


def test_identities_of_equation_12(vae, x):
    vae.prior = VampMixture(1, x[:4])
    found = elbo_surgery(vae, x, n_samples=50)
    assert found["elbo"] == pytest.approx(-found["distortion"] - found["rate"], abs=1e-12)
    assert found["rate"] == pytest.approx(found["mutual_information"] + found["marginal_kl"], abs=1e-9)
    assert found["rate"] == pytest.approx(found["rate_marginal"], abs=1e-12)
    assert found["elbo"] < found["log_px"]
    assert 0 < found["mutual_information"] < math.log(len(x))


def test_the_marginal_part_of_the_rate_is_over_the_draws_that_q_of_z_was_evaluated_at(vae, x):
    found = elbo_surgery(vae, x, n_samples=50, n_marginal=5, batch_size=300, seed=4)
    torch.manual_seed(4)
    q_z = vae.encoder(x)
    z = q_z.sample((50,))
    kl = q_z.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert found["rate"] == pytest.approx(kl.mean().item(), abs=1e-9)
    assert found["rate_marginal"] == pytest.approx(kl[:5].mean().item(), abs=1e-9)
    assert found["rate_marginal"] == pytest.approx(found["mutual_information"] + found["marginal_kl"], abs=1e-9)


def test_batches_and_the_callers_random_numbers_do_not_matter(vae, x):
    state = torch.get_rng_state()
    whole = elbo_surgery(vae, x, n_samples=500, n_marginal=5)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(7)
    assert elbo_surgery(vae, x, n_samples=500, n_marginal=5) == whole
    parts = elbo_surgery(vae, x, n_samples=500, n_marginal=5, batch_size=64)
    assert parts["rate"] == pytest.approx(whole["rate"], abs=0.02)


@pytest.mark.parametrize("arguments", [{"n_samples": 0}, {"n_samples": 5, "n_marginal": 6}])
def test_numbers_of_draws_are_checked(vae, x, arguments):
    with pytest.raises(ValueError, match="should be"):
        elbo_surgery(vae, x, **arguments)


@pytest.mark.parametrize(("at_once", "components"), [(1, 1), (40, 3), (1 << 21, 256)])
def test_blocks_do_not_change_the_mean_of_the_posteriors(at_once, components):
    torch.manual_seed(0)
    n, d = 7, 2
    loc, tril = torch.randn(n, d), torch.randn(n, d, d).tril(-1) + torch.diag_embed(torch.rand(n, d) + 0.5)
    z = torch.randn(3, n, d)
    each = torch.distributions.MultivariateNormal(loc, scale_tril=tril).log_prob(z.unsqueeze(-2))
    expected = each.logsumexp(-1) - math.log(n)
    split = [(loc[:4], tril[:4]), (loc[4:], tril[4:])]
    torch.testing.assert_close(surgery._aggregate(split, z, at_once, components), expected)
