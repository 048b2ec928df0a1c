"""The training loop's objective against Pyro's own, and the shortcuts of its densities against torch's."""

from collections import Counter
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from common import SITES, CorrelatedEncoder, build_prior
from pyro.infer import TraceEnum_ELBO
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vmm.distributions import ReciprocalGamma, TrilNormal
from pyro_vmm.inference import Steps, TrainingConfig
from pyro_vmm.likelihoods import Normal, SharedScaleNormal
from pyro_vmm.models import VAE
from pyro_vmm.models.elbo import Elbo
from pyro_vmm.networks import Decoder, mlp

M, G, D, K = 7, 5, 2, 3
#: Of which kind a prior is, and its settings.
PRIORS = {
    **{name: (name, {}) for name in SITES},
    "differentiated": ("vmm", {"responsibilities": "differentiated"}),
    "sampled": ("vmm", {"expectation": "sampled"}),
}


class Subsampled(VAE):
    """Every row stands for four."""

    def model(self, x, p_z=None):
        with pyro.poutine.scale(scale=4.0):
            return super().model(x, p_z)

    def guide(self, x, p_z=None):
        with pyro.poutine.scale(scale=4.0):
            super().guide(x, p_z)


def build(prior: str, cls=VAE) -> VAE:
    kind, settings = PRIORS[prior]
    p_z = build_prior(kind, D, torch.randn(K, G), **settings)
    if kind in ("gmm", "vmm"):
        # Whether the weights count can't be seen where all are the same.
        torch.nn.init.normal_(p_z.pi_logits)
    return cls(CorrelatedEncoder(mlp(G, (6,)), 6, D), Decoder(mlp(D, (6,)), 6, (G,)), Normal((G,)), p_z)


def assert_same(model, guide, parameters, *args):
    losses, gradients = [], []
    for elbo in (Elbo(), TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)):
        torch.manual_seed(3)
        losses.append(elbo.differentiable_loss(model, guide, *args))
        gradients.append(torch.autograd.grad(losses[-1], parameters, allow_unused=True, retain_graph=True))
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0.0)
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("cls", [VAE, Subsampled])
@pytest.mark.parametrize("whole", [False, True], ids=["p_z", "hierarchy"])
def test_elbo_is_pyros(prior, cls, whole):
    vae, x = build(prior, cls), torch.randn(M, G)
    assert_same(vae.model, vae.guide, list(vae.parameters()), x, None if whole else vae.prior(vae.encoder))


def test_what_was_enumerated_has_one_scale():
    class Annealed(VAE):
        def model(self, x, p_z):
            with pyro.plate("rows", len(x)):
                c = pyro.sample("c", dist.Categorical(logits=p_z.log_weights), infer={"enumerate": "parallel"})
                with pyro.poutine.scale(scale=0.1):
                    z = pyro.sample("z", p_z.component(c))
                pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    vae, x = build("vmm", Annealed), torch.randn(M, G)
    with pytest.raises(ValueError, match="expected one scale"):
        Elbo().differentiable_loss(vae.model, vae.guide, x, vae.prior(vae.encoder))


@pytest.mark.parametrize("prior", ["gmm", "vmm", "differentiated", "sampled"])
@pytest.mark.parametrize("analytic", [True, False])
def test_map_objective_is_pyros(prior, analytic):
    vae, z = build(prior), torch.randn(M, D)
    centres = vae.prior.centres(vae.encoder) if analytic else None
    assert_same(vae.prior.model, vae.prior.guide, vae.prior_parameters(), z, vae.encoder, centres)


class Masked(VAE):
    """Only the first five rows count."""

    def model(self, x, p_z=None):
        with pyro.poutine.mask(mask=torch.arange(len(x)) < 5):
            return super().model(x, p_z)

    def guide(self, x, p_z=None):
        with pyro.poutine.mask(mask=torch.arange(len(x)) < 5):
            super().guide(x, p_z)


class Switched(VAE):
    """All rows are louder, or none is: a global indicator, summed out once."""

    def model(self, x, p_z=None):
        loud = pyro.sample("loud", dist.Bernoulli(torch.tensor(0.3)), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=p_z.log_weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", p_z.component(c))
            return pyro.sample("x", dist.Normal(self.decoder(z), 1.0 + loud[..., None]).to_event(1), obs=x)


class Accompanied(VAE):
    """Some other rows, of a plate of another size, have a hidden indicator, too."""

    def model(self, x, p_z=None):
        with pyro.plate("others", 4):
            hidden = pyro.sample("hidden", dist.Bernoulli(torch.tensor(0.3)), infer={"enumerate": "parallel"})
            pyro.sample("other", dist.Normal(hidden, 1.0), obs=torch.arange(4.0))
        return super().model(x, p_z)


@pytest.mark.parametrize("cls", [Masked, Switched, Accompanied])
@pytest.mark.parametrize("prior", ["gmm", "vmm"])
def test_elbo_of_an_edited_model_is_pyros(prior, cls):
    vae, x = build(prior, cls), torch.randn(M, G)
    assert_same(vae.model, vae.guide, list(vae.parameters()), x, vae.prior(vae.encoder))


def test_the_pair_runs_once():
    """What runs twice moves BatchNorm's statistics twice; here the guide enumerates, and rows are masked."""
    runs = []

    def model():
        runs.append("model")
        with pyro.plate("data", M), pyro.poutine.mask(mask=torch.arange(M) < 5):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(c, 1.0), obs=torch.zeros(M))

    def guide():
        runs.append("guide")
        with pyro.plate("data", M), pyro.poutine.mask(mask=torch.arange(M) < 5):
            pyro.sample("c", dist.Bernoulli(torch.tensor(0.4).requires_grad_()), infer={"enumerate": "parallel"})

    Elbo().differentiable_loss(model, guide)
    assert runs == ["guide", "model"]


class Marginal(VAE):
    """c summed out by the density of z, and not by enumeration."""

    def model(self, x, p_z=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", p_z)
            return pyro.sample("x", self.p_x(z), obs=x)


class Labelled(VAE):
    """c observed."""

    def model(self, x, p_z=None):
        with pyro.plate("data", len(x)):
            labels = torch.arange(len(x)) % p_z.n_components
            c = pyro.sample("c", dist.Categorical(logits=p_z.log_weights), obs=labels)
            z = pyro.sample("z", p_z.component(c))
            return pyro.sample("x", self.p_x(z), obs=x)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("cls", [VAE, Subsampled, Marginal, Labelled, Masked, Switched, Accompanied])
def test_responsibilities_of_the_last_draws(prior, cls):
    vae, x, elbo = build(prior, cls), torch.randn(M, G), Elbo()
    p_z, log_likelihoods = vae.prior(vae.encoder), []
    for loss in (elbo.differentiable_loss, partial(TraceEnum_ELBO.differentiable_loss, elbo)):
        torch.manual_seed(3)
        loss(vae.model, vae.guide, x, p_z)
        torch.testing.assert_close(elbo.responsibilities(p_z), p_z.responsibilities(elbo.z))
        log_likelihoods.append(elbo.log_likelihood)
    torch.testing.assert_close(*log_likelihoods)


class Squares(TorchDispatchMode):
    """Counts the tensors that are squared, by shape."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.pow.Tensor_Scalar and args[1] == 2:
            self.counts[tuple(args[0].shape)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("prior", ["gmm", "vmm", "differentiated"])
def test_a_step_works_the_mixture_out_once(prior):
    vae, x = build(prior), torch.randn(M, G)
    with Squares() as squares:
        Steps(vae, TrainingConfig()).iteration(x)
    assert squares.counts[M, D, K] == 2  # in the SVI step, and in the MAP step


def test_a_guide_that_enumerates_is_left_to_pyro():
    """Here the ELBO is a sum over the guide's own c, of which the short cut knows nothing."""
    weights = torch.tensor([0.2, 0.8]).requires_grad_()
    x = torch.randn(M)

    def model():
        with pyro.plate("data", M):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def guide():
        with pyro.plate("data", M):
            pyro.sample("c", dist.Bernoulli(weights[0]), infer={"enumerate": "parallel"})

    assert_same(model, guide, [weights])


def test_a_forgotten_event_dimension_is_an_error():
    class Forgetful(Normal):
        def forward(self, h):
            return dist.Normal(h, self.scale)

    vae = build("standard_normal")
    vae.likelihood = Forgetful((G,))
    with pytest.raises(ValueError, match="at site"):
        Elbo().differentiable_loss(vae.model, vae.guide, torch.randn(M, G), vae.prior(vae.encoder))


def tril_normal() -> tuple[torch.Tensor, torch.Tensor]:
    loc, tril = torch.randn(M, D), torch.randn(M, D, D).tril(-1) + torch.diag_embed(torch.rand(M, D) + 0.1)
    return loc.requires_grad_(), tril.requires_grad_()


def test_density_of_a_normals_own_draw():
    """Value and total gradient are torch's, in which the draw moves with the parameters."""
    loc, tril = tril_normal()
    q = TrilNormal(loc, tril)
    z = q.rsample()
    ours, theirs = q.log_prob(z), dist.MultivariateNormal(loc, scale_tril=tril).log_prob(z)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(M)
    expected = torch.autograd.grad((weight * theirs).sum(), (loc, tril), retain_graph=True)
    found = torch.autograd.grad((weight * ours).sum() + 0 * loc.sum(), (loc, tril))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1].tril())


@pytest.mark.parametrize("cut", ["sample", "detach"])
def test_gradient_at_a_draw_that_is_held(cut):
    """What a score-function estimator takes: nothing reaches the parameters through the draw, so nothing cancels."""
    loc, tril = tril_normal()
    q = TrilNormal(loc, tril)
    z = q.sample() if cut == "sample" else q.rsample().detach()
    found = torch.autograd.grad(q.log_prob(z).sum(), (loc, tril))
    expected = torch.autograd.grad(dist.MultivariateNormal(loc, scale_tril=tril).log_prob(z).sum(), (loc, tril))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1].tril(), expected[1].tril())


def test_density_of_another_draw():
    loc, tril = tril_normal()
    q, dense = TrilNormal(loc, tril), dist.MultivariateNormal(loc, scale_tril=tril)
    q.rsample()
    for value in (torch.randn(M, D), q.rsample().detach()):
        torch.testing.assert_close(q.log_prob(value), dense.log_prob(value))
    assert q.rsample((4,)).shape == q.expand((4, M)).rsample().shape == (4, M, D)


@pytest.mark.parametrize("event_shape", [(), (G,), (G, 3)])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("samples", [(), (4,)])
def test_shared_scale_normal_is_normal(event_shape, shared, samples):
    n = len(event_shape)
    loc = torch.randn(M, *event_shape).requires_grad_()
    scale = (torch.rand(() if shared else event_shape) + 0.1).requires_grad_()
    x, weight = torch.randn(*samples, M, *event_shape), torch.randn(*samples, M)
    for rows in (loc, loc[:1]):
        ours = SharedScaleNormal(rows, scale, n).expand((M,))
        theirs = dist.Normal(rows.expand(loc.shape), scale).to_event(n)
        assert ours.batch_shape == (M,) and ours.event_shape == event_shape
        found, expected = ours.log_prob(x), theirs.log_prob(x)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad((weight * each).sum(), (loc, scale)) for each in (found, expected)]
        torch.testing.assert_close(*gradients)


def test_reciprocal_gamma_with_jacobian_is_inverse_gamma():
    alpha, a, b = torch.rand(9) + 0.1, torch.tensor(2.5), torch.tensor(0.7)
    found = ReciprocalGamma(a, b, jacobian=True).log_prob(alpha)
    torch.testing.assert_close(found, dist.InverseGamma(a, b).log_prob(alpha))
