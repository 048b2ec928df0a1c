"""The pair that a notebook shows: its sites, its ELBO by hand, and who owns which parameter."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from common import BY_MAP, CorrelatedEncoder, build_prior, every_normal_prior, every_prior
from pyro import poutine
from torch import nn
from torch.nn import functional as F

from pyro_vmm.likelihoods import CustomLikelihood, Normal, StudentT
from pyro_vmm.models import VAE, show_parameters
from pyro_vmm.models.elbo import Elbo
from pyro_vmm.networks import Decoder, mlp

M, G, D, K = 6, 4, 2, 3
PLATES = {"_INPUT", "_RETURN", "data", "components"}


def build(prior: str = "vmm", likelihood: nn.Module | None = None, covariance: str = "full") -> VAE:
    encoder, p_z = CorrelatedEncoder(mlp(G, (8,), nn.Tanh), 8, D, covariance), build_prior(prior, D, torch.randn(K, G))
    return VAE(encoder, Decoder(mlp(D, (8,), nn.Tanh), 8, (G,)), likelihood or Normal((G,)), p_z)


@every_prior
def test_given_p_z_only_the_rows_sites_are_declared(prior):
    vae, x = build(prior), torch.randn(M, G)
    p_z = vae.prior(vae.encoder)
    model = poutine.trace(vae.model).get_trace(x, p_z)
    guide = poutine.trace(vae.guide).get_trace(x, p_z)
    assert set(model.nodes) - PLATES == ({"z", "x"} if prior == "standard_normal" else {"c", "z", "x"})
    assert set(guide.nodes) - PLATES == {"z"}
    assert model.nodes["x"]["is_observed"] and not model.nodes["z"]["is_observed"]


@every_normal_prior
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_elbo_by_hand(prior, covariance):
    """log p(x | z) + log p(z) - log q(z | x) at the same draw, summed over rows."""
    vae, x = build(prior, covariance=covariance), torch.randn(M, G)
    p_z, elbo = vae.prior(vae.encoder), Elbo()
    torch.manual_seed(3)
    value = -elbo.differentiable_loss(vae.model, vae.guide, x, p_z)
    torch.manual_seed(3)
    q = vae.encoder(x)
    z = q.rsample()
    dense = dist.MultivariateNormal(
        q.mean, q.stddev.square().diag_embed() if covariance == "diagonal" else q.covariance_matrix
    )
    log_likelihood = dist.Normal(vae.decoder(z), F.softplus(vae.likelihood.scale_raw) + 1e-5).log_prob(x).sum()
    components = dist.MultivariateNormal(p_z.loc, p_z.covariance)
    log_p_z = dist.MixtureSameFamily(dist.Categorical(p_z.weights), components).log_prob(z).sum()
    expected = log_likelihood + log_p_z - dense.log_prob(z).sum()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(elbo.log_likelihood, log_likelihood.detach())
    assert torch.equal(elbo.z, z)
    parameters = vae.network_parameters()
    ours = torch.autograd.grad(value, parameters, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, parameters), rtol=0.0, atol=1e-8)


def test_full_hierarchy_by_hand():
    """Without p_z the pair is one objective: hyper-priors weighed by rows / m_prior, and no entropy of q(mu)."""
    vae, x = build(), torch.randn(M, G)
    torch.manual_seed(3)
    value = -Elbo().differentiable_loss(vae.model, vae.guide, x)
    torch.manual_seed(3)
    prior = vae.prior
    mu, q = vae.encoder(prior.pseudo_inputs.u).rsample(), vae.encoder(x)
    z = q.rsample()
    precision, h = prior.precision_tril @ prior.precision_tril.mT, prior.hyperprior
    hyper = dist.InverseGamma(1.0, 1.0).log_prob(prior.alpha) + dist.Normal(0.0, 1.0).log_prob(mu).sum()
    hyper = hyper + dist.Dirichlet((prior.alpha / K).expand(K)).log_prob(prior.log_pi.exp())
    hyper = hyper + sum(h.precision_tril(D, K, x).log_prob(tril) for tril in prior.precision_tril)
    components = dist.MultivariateNormal(mu, precision_matrix=precision)
    log_p_z = dist.MixtureSameFamily(dist.Categorical(logits=prior.log_pi), components).log_prob(z).sum()
    expected = vae.p_x(z).log_prob(x).sum() + log_p_z - q.log_prob(z).sum() + M / 256 * hyper
    torch.testing.assert_close(value, expected)


@every_prior
def test_parameters_are_split_without_overlap(prior):
    vae = build(prior, StudentT((G,)))
    networks, prior_parameters = vae.network_parameters(), vae.prior_parameters()
    ids = [id(p) for p in networks + prior_parameters]
    assert len(set(ids)) == len(ids)
    assert set(ids) == {id(p) for p in vae.parameters()}
    assert {id(p) for p in vae.likelihood.parameters()} <= {id(p) for p in networks}
    own = {id(p) for p in vae.prior.parameters()}
    by_map = prior in BY_MAP
    assert {id(p) for p in prior_parameters} == (own if by_map else set())


def test_a_custom_likelihoods_parameters_belong_to_the_networks():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, h):
            return dist.Laplace(h, self.scale)

    vae = build(likelihood=CustomLikelihood((G,), Learned()))
    assert any(p is vae.likelihood.function.scale for p in vae.network_parameters())


def test_show_parameters_shows_to_handlers_and_leaves_the_store_empty():
    vae = build()
    trace = poutine.trace(lambda: show_parameters(vae), param_only=True).get_trace()
    shown = {name: node["value"].unconstrained() for name, node in trace.nodes.items() if node["type"] == "param"}
    assert shown.keys() == dict(vae.named_parameters()).keys()
    assert all(shown[name] is parameter for name, parameter in vae.named_parameters())
    vae.model(torch.randn(M, G))
    vae.guide(torch.randn(M, G))
    assert dict(pyro.get_param_store()) == {}


def test_model_samples_rows():
    vae = build()
    assert vae.model(rows=5).shape == (5, G)
    assert vae.model(None, vae.prior(vae.encoder), rows=5).shape == (5, G)


def test_p_x():
    vae, z = build(), torch.randn(5, D)
    torch.testing.assert_close(vae.p_x(z).mean, vae.decoder(z))
    assert vae.p_x(z).batch_shape == (5,)


def test_cluster_probabilities_need_no_gradient():
    vae, z = build(), torch.randn(5, D)
    probabilities = vae.cluster_probabilities(z)
    assert probabilities.shape == (5, K) and not probabilities.requires_grad
    joint = vae.prior.clustering(vae.encoder).joint_log_prob(z)
    torch.testing.assert_close(probabilities, joint.exp() / joint.exp().sum(-1, keepdim=True))
