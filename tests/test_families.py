"""Families of components: diagonal, tied and spherical covariances, and Student's t distributions."""

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_vmm.distributions import DiagonalWishartTril, MixtureOfStudents, SphericalWishartTril, WishartTril

D, DF, SCALE = 3, 5.5, 0.7
FAMILIES = {"diagonal": DiagonalWishartTril, "spherical": SphericalWishartTril}


def matrices(family: str, n: int = 4) -> np.ndarray:
    """Precisions of a family, (n, D, D)."""
    diagonals = np.random.default_rng(0).uniform(0.2, 3.0, (n, D))
    return np.stack([np.diag(each if family == "diagonal" else np.full(D, each[0])) for each in diagonals])


# Hyper-priors of precisions


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hyperprior_is_the_wisharts_on_the_family(family):
    """It differs from SciPy's Wishart density by a constant."""
    precisions = matrices(family)
    own = FAMILIES[family](DF, torch.tensor(SCALE), D).log_prob(torch.as_tensor(precisions).sqrt())
    of_all = [stats.wishart(DF, SCALE * np.eye(D)).logpdf(each) for each in precisions]
    np.testing.assert_allclose(np.diff(own.numpy()), np.diff(of_all), rtol=1e-10)


def test_the_diagonal_hyperprior_is_a_gamma_density_of_each_entry():
    precisions = matrices("diagonal")
    expected = stats.gamma((DF - D + 1) / 2, scale=2 * SCALE).logpdf(np.einsum("nii->ni", precisions)).sum(1)
    found = DiagonalWishartTril(DF, torch.tensor(SCALE), D).log_prob(torch.as_tensor(precisions).sqrt())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_the_spherical_hyperprior_integrates_to_one():
    grid = torch.linspace(1e-6, 60.0, 200_001)
    trils = grid.sqrt()[:, None, None] * torch.eye(D)
    mass = torch.trapezoid(SphericalWishartTril(DF, torch.tensor(SCALE), D).log_prob(trils).exp(), grid)
    assert mass.item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_one_dimension_all_families_are_one(family):
    trils = torch.rand(5, 1, 1) + 0.1
    found = FAMILIES[family](DF, torch.tensor(SCALE), 1).log_prob(trils)
    torch.testing.assert_close(found, WishartTril(DF, torch.tensor(SCALE), 1).log_prob(trils))


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_of_a_hyperprior_follow_its_density(family):
    hyperprior = FAMILIES[family](DF, torch.tensor(SCALE), D).expand((2,))
    draws = hyperprior.sample((2000,))
    assert draws.shape == (2000, 2, D, D) and hyperprior.log_prob(draws).shape == (2000, 2)
    assert (draws == torch.diag_embed(draws.diagonal(dim1=-2, dim2=-1))).all()
    shape, rate = hyperprior.precision.concentration[0].item(), hyperprior.precision.rate[0].item()
    for k, j in ((0, 0), (1, 2)):
        assert stats.kstest(draws[:, k, j, j].square().numpy(), stats.gamma(shape, scale=1 / rate).cdf).pvalue > 1e-3
    if family == "diagonal":
        assert abs(np.corrcoef(draws[:, 0, 0, 0], draws[:, 0, 1, 1])[0, 1]) < 0.1


# Student's t


def students(df: float = 3.5, k: int = 2) -> tuple[MixtureOfStudents, list]:
    """A mixture, and SciPy's distributions of its components."""
    tril = 0.4 * torch.randn(k, D, D).tril(-1) + torch.diag_embed(0.5 + torch.rand(k, D))
    mixture = MixtureOfStudents(torch.rand(k).log_softmax(-1), torch.randn(k, D), tril, df)
    shapes = np.linalg.inv((tril @ tril.mT).numpy())
    return mixture, [stats.multivariate_t(mixture.loc[i].numpy(), shapes[i], df) for i in range(k)]


def test_components_are_scipys_multivariate_t():
    mixture, components = students()
    z = 3 * torch.randn(20, D)
    expected = np.stack([each.logpdf(z.numpy()) for each in components], 1)
    np.testing.assert_allclose(mixture.component_log_prob(z).numpy(), expected, rtol=1e-8)
    weighted = (mixture.weights.numpy() * np.exp(expected)).sum(1)
    np.testing.assert_allclose(mixture.log_prob(z).exp().numpy(), weighted, rtol=1e-8)
    reweighted = mixture.reweighted(torch.zeros(20, 2))
    assert type(reweighted) is MixtureOfStudents and reweighted.batch_shape == (20,)
    torch.testing.assert_close(reweighted.log_prob(z), mixture.log_prob(z))
    chosen = mixture.component(torch.arange(20) % 2).log_prob(z).numpy()
    np.testing.assert_allclose(chosen, expected[np.arange(20), np.arange(20) % 2], rtol=1e-8)


def test_draws_of_a_component_follow_its_density():
    """Squared distances are D times an F variable."""
    mixture, _ = students()
    z = mixture.component(torch.zeros(4000, dtype=torch.long)).sample()
    squares = ((z - mixture.loc[0]) @ mixture.whitener[0]).square().sum(-1) / D
    assert stats.kstest(squares.numpy(), stats.f(D, mixture.df).cdf).pvalue > 1e-3
    many, _ = students(df=9.0)
    z = many.component(torch.ones(50_000, dtype=torch.long)).sample()
    np.testing.assert_allclose(np.cov(z.numpy().T), many.covariance[1].numpy(), atol=0.1 * many.covariance[1].max())


def test_students_of_many_degrees_of_freedom_are_normals():
    mixture, _ = students(df=1e7)
    z = torch.randn(5, D)
    for k in range(2):
        normal = torch.distributions.MultivariateNormal(mixture.loc[k], precision_matrix=_precision(mixture)[k])
        torch.testing.assert_close(mixture.component_log_prob(z)[:, k], normal.log_prob(z), rtol=1e-5, atol=1e-5)


def _precision(mixture: MixtureOfStudents) -> torch.Tensor:
    return mixture.whitener @ mixture.whitener.mT
