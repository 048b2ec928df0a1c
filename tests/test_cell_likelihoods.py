"""Likelihoods of cells: shapes, extremes of float32, and densities against SciPy and pyro.distributions."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch import nn
from torch.nn import functional as F

from pyro_vmm.likelihoods import CELL_LIKELIHOODS, DISPERSIONS, CellLikelihood, CustomCellLikelihood
from pyro_vmm.runtime.cell_layout import CellLayout

M, G, B = 6, 5, 3
LAYOUT = CellLayout(G, (B, 2), n_continuous=1)
KINDS = [(name, dispersion) for name in ("zinb", "nb") for dispersion in DISPERSIONS]
KINDS += [(name, None) for name in CELL_LIKELIHOODS if name not in ("zinb", "nb")]
every_kind = pytest.mark.parametrize(("name", "dispersion"), KINDS)
every_count = pytest.mark.parametrize(("name", "dispersion"), [kind for kind in KINDS if kind[0] != "normal"])


def build(name: str, dispersion: str | None = None) -> CellLikelihood:
    """A likelihood whose parameters are not all alike."""
    likelihood = CELL_LIKELIHOODS[name](LAYOUT, *([dispersion] if dispersion else []))
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter += 0.5 * torch.randn(parameter.shape)
    return likelihood


def decoded(likelihood: CellLikelihood, *rows: int) -> torch.Tensor:
    outputs = (likelihood.outputs_per_gene,) if likelihood.outputs_per_gene > 1 else ()
    return torch.randn(*rows, *outputs, G)


def cells(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Library sizes (M, 1) and covariates (M, P), two cells of each batch."""
    one_hot = torch.eye(B).repeat_interleave(2, 0)
    covariates = torch.cat([one_hot, torch.eye(2).repeat(3, 1), torch.randn(M, 1)], -1)
    return torch.linspace(5.0, 40.0, M)[:, None].to(dtype), covariates.to(dtype)


def plain_theta(likelihood: CellLikelihood, h: torch.Tensor) -> torch.Tensor:
    """The inverse dispersions of these M cells, (M, G), by their definition."""
    if likelihood.dispersion == "gene-cell":
        return h[:, -1].exp()
    batch = torch.arange(B).repeat_interleave(2) if likelihood.dispersion == "gene-batch" else torch.zeros(M).long()
    return likelihood.log_inverse_dispersion[batch].exp()


def parts(likelihood: CellLikelihood, h: torch.Tensor, library: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mean and inverse dispersion of these cells, and logits of the zeros put in, (M, G) each."""
    rows = h if likelihood.outputs_per_gene == 1 else h[:, 0]
    mean = library * rows.exp() / rows.exp().sum(-1, keepdim=True)
    theta = plain_theta(likelihood, h) if hasattr(likelihood, "dispersion") else None
    return mean, theta, h[:, 1] if likelihood.outputs_per_gene > 1 else None


def values(name: str) -> torch.Tensor:
    x = torch.poisson(torch.full((M, G), 3.0))
    x[0, :3] = torch.tensor([0.0, 1.0, 60.0])
    if name == "normal":
        return torch.randn(M, G)
    return x.clamp(max=1) if name == "bernoulli" else x


# Shapes


@every_kind
@pytest.mark.parametrize("draws", [(), (4,)])
def test_shapes(name, dispersion, draws):
    """Also of several draws of z for every cell, as importance sampling has them."""
    likelihood, (library, covariates) = build(name, dispersion), cells()
    p_x = likelihood(decoded(likelihood, *draws, M), library, covariates)
    assert p_x.batch_shape == (*draws, M) and p_x.event_shape == (G,)
    x = p_x.sample()
    assert x.shape == (*draws, M, G)
    assert p_x.log_prob(x).shape == (*draws, M) and p_x.log_prob(x).isfinite().all()
    assert p_x.log_prob(x[0] if draws else x).shape == (*draws, M)
    likelihood.check(x.reshape(-1, G))


@pytest.mark.parametrize(
    ("name", "dispersion", "outputs"),
    [
        ("zinb", "gene", 2),
        ("zinb", "gene-batch", 2),
        ("zinb", "gene-cell", 3),
        ("nb", "gene", 1),
        ("nb", "gene-batch", 1),
        ("nb", "gene-cell", 2),
        ("poisson", None, 1),
        ("bernoulli", None, 1),
        ("normal", None, 1),
    ],
)
def test_outputs_per_gene(name, dispersion, outputs):
    assert build(name, dispersion).outputs_per_gene == outputs
    assert CELL_LIKELIHOODS[name](LAYOUT).outputs_per_gene == (2 if name == "zinb" else 1), "of the class, or shared"


# Means


@every_count
def test_expression_sums_to_one(name, dispersion):
    likelihood = build(name, dispersion)
    expression = likelihood.expression(100 * decoded(likelihood, M))
    assert expression.shape == (M, G) and (expression >= 0).all()
    torch.testing.assert_close(expression.sum(-1), torch.ones(M))


@every_count
def test_expected_counts_are_library_times_expression(name, dispersion):
    likelihood, (library, covariates) = build(name, dispersion), cells()
    h = decoded(likelihood, M)
    expected = library * likelihood.expression(h)
    if name == "zinb":
        expected = expected * torch.sigmoid(-h[:, 1])
    if name == "bernoulli":
        expected = 1 - torch.exp(-expected)
    torch.testing.assert_close(likelihood(h, library, covariates).mean, expected)


def test_expected_values_of_the_normal_are_the_decoders():
    likelihood, (library, covariates) = build("normal"), cells()
    h = decoded(likelihood, M)
    assert likelihood.expression(h) is h
    assert torch.equal(likelihood(h, library, covariates).mean, h)


@every_kind
def test_draws_have_the_mean_and_variance(name, dispersion):
    """Within five standard errors, that of the variance by the draws' own fourth moment."""
    likelihood, (library, covariates) = build(name, dispersion), cells()
    p_x, n = likelihood(decoded(likelihood, M), library, covariates), 4000
    x = p_x.sample((n,))
    assert ((x.mean(0) - p_x.mean).abs() < 5 * (p_x.variance / n).sqrt()).all()
    squares = (x - p_x.mean).square()
    # Where no draw differs from the others, as of an open peak, their fourth moment tells nothing.
    error = squares.std(0).maximum(p_x.stddev) / n**0.5
    assert ((squares.mean(0) - p_x.variance).abs() < 5 * error).all()


# Densities


@every_kind
def test_density_is_scipys(name, dispersion):
    likelihood, (library, covariates), x = build(name, dispersion), cells(), values(name)
    h = decoded(likelihood, M)
    found = likelihood(h, library, covariates).log_prob(x).detach().numpy()
    x, (mean, theta, gate) = x.numpy(), parts(likelihood, h, library)
    mean = mean.numpy()
    if name == "poisson":
        expected = stats.poisson(mean).logpmf(x)
    elif name == "bernoulli":
        expected = stats.bernoulli(1 - np.exp(-mean)).logpmf(x)
    elif name == "normal":
        scale = (F.softplus(likelihood.scale_raw) + 1e-5).detach().numpy()
        expected = stats.norm(h.numpy(), scale).logpdf(x)
    else:
        theta = theta.detach().numpy()
        expected = stats.nbinom(theta, theta / (theta + mean)).logpmf(x)
    if name == "zinb":
        gate = gate.numpy()
        counted = special.log_expit(-gate) + expected
        expected = np.where(x == 0, np.logaddexp(special.log_expit(gate), counted), counted)
    # The floor of 1e-12 under the means is in the eighth digit of none.
    np.testing.assert_allclose(found, expected.sum(-1), rtol=1e-8)


@pytest.mark.parametrize(("name", "dispersion"), [kind for kind in KINDS if kind[1]])
def test_density_is_pyros(name, dispersion):
    likelihood, (library, covariates), x = build(name, dispersion), cells(), values(name)
    h = decoded(likelihood, M)
    mean, theta, gate = parts(likelihood, h, library)
    logits = mean.log() - theta.log()
    if name == "zinb":
        theirs = dist.ZeroInflatedNegativeBinomial(theta, logits=logits, gate_logits=gate)
    else:
        theirs = dist.NegativeBinomial(theta, logits=logits)
    ours = likelihood(h, library, covariates)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x).sum(-1), rtol=1e-8, atol=1e-8)


@every_kind
def test_density_of_one_gene_sums_to_one(name, dispersion):
    """Over the values of the first gene, the others as they are."""
    likelihood, (library, covariates) = build(name, dispersion), cells()
    p_x = likelihood(decoded(likelihood, M), library, covariates).base_dist
    grid = torch.arange(2.0 if name == "bernoulli" else 2000.0)
    grid = torch.linspace(-40, 40, 40_001) if name == "normal" else grid
    density = p_x.log_prob(grid[:, None, None].expand(-1, M, G)).exp()[..., 0]
    mass = torch.trapezoid(density, grid, dim=0) if name == "normal" else density.sum(0)
    torch.testing.assert_close(mass, torch.ones(M), rtol=1e-6, atol=0.0)


# Dispersions


def test_a_dispersion_for_every_batch_is_that_of_the_cells_batch():
    likelihood, (library, covariates) = build("nb", "gene-batch"), cells()
    h, x = decoded(likelihood, M), values("nb")
    before = likelihood(h, library, covariates).log_prob(x)
    with torch.no_grad():
        likelihood.log_inverse_dispersion[1] += 1
    after = likelihood(h, library, covariates).log_prob(x)
    assert (before != after).tolist() == [False, False, True, True, False, False]
    # A cell that is partly of every batch has the geometric mean.
    covariates[:, :B] = 1 / B
    expected = likelihood.log_inverse_dispersion.mean(0).exp()
    torch.testing.assert_close(likelihood.inverse_dispersion(h, covariates), expected.expand(M, G))


@pytest.mark.parametrize("log_theta", [-1e4, 1e4])
@pytest.mark.parametrize("dispersion", DISPERSIONS)
def test_dispersions_are_bounded(dispersion, log_theta):
    likelihood, (library, covariates) = CELL_LIKELIHOODS["zinb"](LAYOUT, dispersion).float(), cells(torch.float32)
    h = torch.full((M, likelihood.outputs_per_gene, G), 0.0).float()
    with torch.no_grad():
        h[:, 2:] = log_theta
        for parameter in likelihood.parameters():
            parameter.fill_(log_theta)
    theta = likelihood.inverse_dispersion(h, covariates)
    assert (theta > 0).all() and theta.isfinite().all()
    log_prob = likelihood(h, library, covariates).log_prob(values("zinb").float())
    assert log_prob.isfinite().all()


@pytest.mark.parametrize("name", ["zinb", "nb"])
def test_an_unknown_dispersion(name):
    with pytest.raises(ValueError, match=r"dispersion='cell' should be one of \('gene', 'gene-batch', 'gene-cell'\)"):
        CELL_LIKELIHOODS[name](LAYOUT, "cell")


# Extremes of float32


def extremes(likelihood: CellLikelihood, size: float) -> torch.Tensor:
    """Decoder output of ±size and 0 in every combination of a few, (M, P', G)."""
    h = decoded(likelihood, M).sign() * size
    h[0], h[1], h[2] = size, -size, 0
    h.reshape(M, -1)[3, ::2] = 0
    return h.float().requires_grad_()


@every_kind
@pytest.mark.parametrize("size", [100.0, 1e4])
@pytest.mark.parametrize("library", [1e-6, 1.0, 1e7])
@pytest.mark.parametrize("count", [0.0, 1.0, 1e6])
def test_extremes_are_finite_in_float32(name, dispersion, size, library, count):
    likelihood, (_, covariates) = build(name, dispersion).float(), cells(torch.float32)
    h = extremes(likelihood, size)
    library = torch.full((M, 1), library).float().requires_grad_()
    x = torch.full((M, G), min(count, 1.0) if name == "bernoulli" else count).float()
    log_prob = likelihood(h, library, covariates).log_prob(x)
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all()
    leaves = [h, *([] if name == "normal" else [library]), *likelihood.parameters()]
    for gradient in torch.autograd.grad(log_prob.sum(), leaves):
        assert gradient.dtype == torch.float32 and gradient.isfinite().all()


@every_count
def test_means_of_zero_leave_positive_counts_possible(name, dispersion):
    """Where the softmax underflows. The gradient must not be zero everywhere: it raises the gene that was counted."""
    likelihood, (library, covariates) = build(name, dispersion).float(), cells(torch.float32)
    with torch.no_grad():
        h = decoded(likelihood, M).float()
        first = h if likelihood.outputs_per_gene == 1 else h[:, 0]
        first[:] = torch.tensor([0.0, -80.0, -200.0, -200.0, -200.0])
    h.requires_grad_()
    assert (likelihood.expression(h)[:, 2:] == 0).all()
    p_x = likelihood(h, library, covariates)
    x = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]).float().expand(M, G)
    log_prob = p_x.base_dist.log_prob(x)
    assert log_prob.isfinite().all()
    assert (log_prob[:, 4] < log_prob[:, 3] - 10).all(), "a count at a mean of zero should be unlikely"
    (gradient,) = torch.autograd.grad(log_prob.sum(), h)
    gradient = gradient if likelihood.outputs_per_gene == 1 else gradient[:, 0]
    assert gradient.isfinite().all() and (gradient[:, 1] > 0).all()


@every_kind
def test_float32_agrees_with_float64(name, dispersion):
    likelihood, (library, covariates), x = build(name, dispersion), cells(), values(name)
    h = decoded(likelihood, M)
    exact = likelihood(h, library, covariates).log_prob(x)
    rounded = likelihood.float()(h.float(), library.float(), covariates.float()).log_prob(x.float())
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-5, atol=1e-5)


# Training


@every_kind
def test_gradient_reaches_every_parameter(name, dispersion):
    likelihood, (library, covariates) = build(name, dispersion), cells()
    h = decoded(likelihood, M).requires_grad_()
    likelihood(h, library, covariates).log_prob(values(name)).sum().backward()
    assert (h.grad != 0).all()
    for parameter_name, parameter in likelihood.named_parameters():
        assert (parameter.grad != 0).all(), parameter_name


def test_the_normals_scale():
    likelihood = CELL_LIKELIHOODS["normal"](LAYOUT, initial_scale=0.3)
    (library, covariates), h = cells(), torch.randn(M, G)
    torch.testing.assert_close(likelihood(h, library, covariates).stddev, torch.full((M, G), 0.3), rtol=1e-4, atol=0.0)
    for scale in (0.0, -1.0, float("nan"), float("inf"), "1"):
        with pytest.raises(ValueError, match=f"initial_scale={scale!r} should be a positive number"):
            CELL_LIKELIHOODS["normal"](LAYOUT, initial_scale=scale)


# What they refuse


def test_peaks_are_open_or_closed():
    peaks = CELL_LIKELIHOODS["bernoulli"](LAYOUT)
    peaks.check(torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"a value is 4; likelihood='bernoulli' expects 0 or 1: use 'poisson'"):
        peaks.check(torch.tensor([[0.0, 1.0, 4.0, 2.0, 0.0]]))


class Inflated(nn.Module):
    """A likelihood of two outputs per gene, with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.log_theta = nn.Parameter(torch.zeros(G))

    def forward(self, h, library):
        mean = library * h[..., 0, :].softmax(-1)
        theta = self.log_theta.exp()
        return dist.ZeroInflatedDistribution(
            dist.NegativeBinomial(theta, logits=(mean / theta).log()), gate_logits=h[..., 1, :]
        )


def test_any_callable_is_a_likelihood():
    ours, theirs = CELL_LIKELIHOODS["zinb"](LAYOUT), CustomCellLikelihood(LAYOUT, Inflated(), outputs_per_gene=2)
    (library, covariates), x = cells(), values("zinb")
    for rows in ((M,), (4, M)):
        h = decoded(ours, *rows)
        p_x = theirs(h, library, covariates)
        assert p_x.batch_shape == rows and p_x.event_shape == (G,)
        expected = ours(h, library, covariates).log_prob(x)
        torch.testing.assert_close(p_x.log_prob(x), expected, rtol=1e-8, atol=1e-8)
    theirs.check(x)
    assert [name for name, _ in theirs.named_parameters()] == ["function.log_theta"]
    assert theirs.counts and theirs.outputs_per_gene == 2


@pytest.mark.parametrize(
    "function",
    [lambda h, library: dist.Normal(h, 1.0), lambda h, library: dist.Normal(h, 1.0).to_event(1)],
    ids=["batch", "event"],
)
def test_a_callable_may_declare_its_event_or_not(function):
    likelihood, (library, covariates) = CustomCellLikelihood(LAYOUT, function, counts=False), cells()
    p_x = likelihood(torch.randn(M, G), library, covariates)
    assert p_x.batch_shape == (M,) and p_x.event_shape == (G,)
    assert not likelihood.counts
    h = torch.randn(M, 2, G)
    two_rows = CustomCellLikelihood(LAYOUT, function, outputs_per_gene=2, counts=False)
    assert torch.equal(two_rows.expression(h), h[:, 0]) and torch.equal(likelihood.expression(h[:, 1]), h[:, 1])
    likelihood.check(torch.randn(M, G))


def fails(h, library):
    raise RuntimeError("out of ideas")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda h, library: torch.distributions.Normal(h, 1.0), "returned a Normal, expected a Pyro distribution"),
        (lambda h, library: h, "returned a Tensor, expected a Pyro distribution"),
        (fails, rf"likelihood can't score values of shape \({M}, {G}\): out of ideas"),
        (lambda h: dist.Normal(h, 1.0), r"likelihood can't score values of shape .* takes 1 positional argument"),
        (lambda h, library: dist.Normal(h[:, :2], 1.0), rf"it returned a distribution of shape \({M}, 2\)"),
        (lambda h, library: dist.Normal(library, 1.0), rf"it returned a distribution of shape \({M}, 1\)"),
        (lambda h, library: dist.Normal(h.sum(-1), 1.0), rf"it returned a distribution of shape \({M},\)"),
        (lambda h, library: dist.Beta(h.exp(), 1.0), "likelihood can't score values of shape"),
    ],
)
def test_callables_that_are_no_likelihood(function, message):
    with pytest.raises(ValueError, match=message):
        CustomCellLikelihood(LAYOUT, function).check(values("nb"))
