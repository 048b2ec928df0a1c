"""Families of components: diagonal, tied and spherical covariances, and Student's t distributions."""

import numpy as np
import pytest
import torch
from common import message_of, planted
from pyro import poutine
from scipy import stats
from scipy.integrate import trapezoid
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.cli import main
from pyro_vmm.distributions import DiagonalWishartTril, MixtureOfStudents, SphericalWishartTril, WishartTril
from pyro_vmm.inference.settling import can_settle
from pyro_vmm.priors import COVARIANCES, GaussianMixture, HyperPrior, Places, StudentMixture
from pyro_vmm.priors.conjugate import KnownCovariance, NormalGamma
from pyro_vmm.priors.covariances import Spherical
from pyro_vmm.priors.evidence import Encoded, Moments, NormalWishart

D, DF, SCALE = 3, 5.5, 0.7
RANDOM = np.random.default_rng(0)
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
    z = torch.randn(5, D)
    for df in (1e7, 1e15, 1e30):
        mixture, _ = students(df=df)
        for k in range(2):
            normal = torch.distributions.MultivariateNormal(mixture.loc[k], precision_matrix=_precision(mixture)[k])
            torch.testing.assert_close(mixture.component_log_prob(z)[:, k], normal.log_prob(z), rtol=1e-5, atol=1e-5)


def _precision(mixture: MixtureOfStudents) -> torch.Tensor:
    return mixture.whitener @ mixture.whitener.mT


# Evidence


Z = RANDOM.normal(size=(40, D)) @ RANDOM.normal(size=(D, D)) + 2
LABELS = np.arange(40) % 3
MOMENTS = Moments.of(Encoded(Z, np.zeros((40, D))), LABELS, 3)
LOC, PSI = np.array([0.5, -1.0, 0.0]), np.array([1.0, 2.0, 0.5])


def of_dimension(j: int) -> Moments:
    return Moments(MOMENTS.count, MOMENTS.total[:, [j]], MOMENTS.square[:, j : j + 1, j : j + 1])


def test_the_diagonal_evidence_is_the_product_of_those_of_the_dimensions():
    found = NormalGamma(LOC, PSI, df=3.5, weight=0.7)
    each = [NormalWishart(LOC[[j]], PSI[[j], None], df=3.5, weight=0.7) for j in range(D)]
    expected = sum(prior.log_evidence(of_dimension(j)) for j, prior in enumerate(each))
    np.testing.assert_allclose(found.log_evidence(MOMENTS), expected, rtol=1e-12)
    loc, covariance = found.mode(MOMENTS)
    for j, prior in enumerate(each):
        own_loc, own_covariance = prior.mode(of_dimension(j))
        np.testing.assert_allclose(loc[:, [j]], own_loc)
        np.testing.assert_allclose(covariance[:, j, j], own_covariance[:, 0, 0])
    assert not covariance[:, ~np.eye(D, dtype=bool)].any()


def test_the_spherical_evidence_is_the_integral_over_the_precision():
    """Given the precision the rows of a dimension are one normal vector, the mean summed out."""
    prior, log_precision = NormalGamma(LOC, np.array([1.3]), df=3.5, weight=0.7), np.linspace(-12, 8, 4001)
    for k in range(3):
        rows = Z[k == LABELS]
        shape = np.eye(len(rows)) + 1 / prior.weight  # times 1 / precision, the rows' covariance in each dimension
        squares = sum((rows[:, j] - LOC[j]) @ np.linalg.solve(shape, rows[:, j] - LOC[j]) for j in range(D))
        normal = D * (len(rows) * (log_precision - np.log(2 * np.pi)) - np.linalg.slogdet(shape)[1]) / 2
        given = normal - np.exp(log_precision) * squares / 2
        density = stats.gamma(prior.df / 2, scale=2 / 1.3).logpdf(np.exp(log_precision)) + log_precision
        heights = given + density
        expected = heights.max() + np.log(trapezoid(np.exp(heights - heights.max()), log_precision))
        assert prior.log_evidence(MOMENTS)[k] == pytest.approx(expected, rel=1e-6)


def test_the_spherical_mode_is_where_the_posterior_density_is_largest():
    prior, rows = NormalGamma(LOC, np.array([1.3]), df=3.5, weight=0.7), Z[LABELS == 0]
    loc, covariance = (each[0] for each in prior.mode(MOMENTS))

    def log_joint(m: np.ndarray, v: float) -> float:
        of_variance = stats.invgamma(prior.df / 2, scale=1.3 / 2).logpdf(v)
        centre = stats.multivariate_normal(LOC, v / prior.weight).logpdf(m)
        return of_variance + centre + stats.multivariate_normal(m, v).logpdf(rows).sum()

    best = log_joint(loc, covariance[0, 0])
    np.testing.assert_array_equal(covariance, covariance[0, 0] * np.eye(D))
    for factor in (0.98, 1.02):
        assert log_joint(loc, factor * covariance[0, 0]) < best
    for _ in range(20):
        assert log_joint(loc + 0.05 * RANDOM.normal(size=D), covariance[0, 0]) < best


def test_the_evidence_of_a_known_covariance_is_the_limit_of_a_sure_wishart():
    covariance = np.cov(Z.T)
    found = KnownCovariance(LOC, covariance, weight=0.7)
    sure = NormalWishart(LOC, 1e7 * covariance, 1e7 + D + 1, weight=0.7)
    np.testing.assert_allclose(found.log_evidence(MOMENTS), sure.log_evidence(MOMENTS), atol=1e-3)
    for own, other in zip(found.mode(MOMENTS), sure.mode(MOMENTS), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5)


@pytest.mark.parametrize("family", COVARIANCES)
def test_a_fitted_prior_expects_the_covariance_within_components(family):
    fitted = COVARIANCES[family].fitted(MOMENTS, LOC)
    within = MOMENTS.within
    if family == "full":
        found = fitted.scale / (fitted.df - D - 1)
    elif family == "tied":
        found = fitted.covariance
    else:
        found = np.diag(np.broadcast_to(fitted.scale / (fitted.df - 2), D))
        within = np.diag(within.diagonal()) if family == "diagonal" else within.trace() / D * np.eye(D)
    np.testing.assert_allclose(found, within)


# The mixtures


def mixture(covariance: str, k: int = 4, **settings) -> GaussianMixture:
    prior = GaussianMixture(torch.randn(k, D), covariance=covariance, **settings)
    with torch.no_grad():
        prior.precision_raw += 0.3 * torch.randn_like(prior.precision_raw)
    return prior


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_precisions_are_of_their_family(covariance):
    prior = mixture(covariance)
    tril = prior.precision_tril
    assert tril.shape == (4, D, D) and prior.covariance.name == covariance
    shapes = {"full": (4, D, D), "diagonal": (4, D), "tied": (D, D), "spherical": (4,)}
    assert prior.precision_raw.shape == shapes[covariance]
    off, diagonal = tril.tril(-1), tril.diagonal(dim1=-2, dim2=-1)
    assert off.any() == (covariance in ("full", "tied"))
    assert (tril == tril[:1]).all() == (covariance == "tied")
    assert (diagonal == diagonal[:, :1]).all() == (covariance == "spherical")
    start = GaussianMixture(torch.randn(4, D), covariance=covariance).precision_tril
    torch.testing.assert_close(start, torch.eye(D).expand(4, D, D), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_what_leaves_training_and_what_is_shared(covariance):
    prior = mixture(covariance)
    assert ("precision_raw" in prior.component_tensors()) == (covariance != "tied")
    before, kept = prior.precision_tril.detach().clone(), torch.tensor([2, 0])
    subset = prior.subset(kept)
    torch.testing.assert_close(subset.precision_tril, before[kept])
    with torch.no_grad():
        subset.precision_raw.add_(0.5)
    prior.absorb(subset, kept)
    torch.testing.assert_close(prior.precision_tril[kept], subset.precision_tril)
    left = [1, 3]
    assert torch.equal(prior.precision_tril[left], before[left]) == (covariance != "tied")
    prior.reorder(torch.tensor([3, 2, 1, 0]))
    torch.testing.assert_close(prior.precision_tril[1], subset.precision_tril[0])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_hyperprior_of_precisions_counts_once_for_each_that_there_is(covariance):
    prior = mixture(covariance, m_prior=1.0)
    guide = poutine.trace(prior.hierarchy_guide).get_trace()
    trace = poutine.trace(poutine.replay(prior.hierarchy, guide)).get_trace(1)
    trace.compute_log_prob()
    found, tril = trace.nodes["precision_tril"]["log_prob"], prior.precision_tril
    assert found.shape == (() if covariance == "tied" else (4,))
    df, scale = D + 2, 4 ** (1 / D) / (D + 2)
    expected = [stats.wishart(df, scale * np.eye(D)).logpdf((each @ each.T).detach().numpy()) for each in tril]
    if covariance == "tied":
        assert found.item() == pytest.approx(expected[0])
    else:  # on a family it is the same up to a constant
        np.testing.assert_allclose(np.diff(found.detach().numpy()), np.diff(expected))
    torch.testing.assert_close(trace.nodes["precision"]["value"], tril @ tril.mT)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_places_are_map_points(covariance):
    """Where the gradient of what the MAP step maximises vanishes, with the rows' moments in the place of rows."""
    prior = mixture(covariance, k=3)
    count, root = torch.tensor([30.0, 12.0, 5.0]), torch.randn(3, D, D)
    spread = root @ root.mT + 0.5 * torch.eye(D)
    prior.place(Places(count, torch.randn(3, D), spread, torch.zeros(3, 1, 4)), torch.arange(3), None)
    tril = prior.precision_tril
    precision, wishart = tril @ tril.mT, prior._precision_hyperprior()
    rows = (count * (tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * (precision * spread).sum((-2, -1)))).sum()
    # The density of all matrices has the same gradient within the family.
    of_all = WishartTril(wishart.df, wishart.scale, D)
    (rows + of_all.log_prob(tril[:1] if covariance == "tied" else tril).sum()).backward()
    assert prior.precision_raw.grad.abs().max() < 1e-7


def test_spherical_covariances_need_degrees_of_freedom():
    numbers = HyperPrior(wishart_excess_df=0.2)
    assert GaussianMixture(torch.zeros(2, D), hyperprior=numbers).n_components == 2
    told = message_of(lambda: GaussianMixture(torch.zeros(2, D), hyperprior=numbers, covariance="spherical"))
    assert told.startswith(
        "wishart_excess_df=0.2 is too small for spherical covariances of 3 dimensions, expected more"
    )


@pytest.mark.parametrize("given", ["round", None, 3])
def test_what_is_no_family(given):
    told = message_of(lambda: GaussianMixture(torch.zeros(2, D), covariance=given))
    assert told.startswith(f"covariance={given!r} should be one of ('full', 'diagonal', 'tied', 'spherical'), or")


# Estimators


TINY = {"n_components": 6, "latent_dim": 2, "hidden": (16,), "learning_rate": 1e-2, "random_state": 0}
TRUTH = np.arange(150) % 3
X = 8 * RANDOM.normal(size=(3, 5))[TRUTH] + RANDOM.normal(size=(150, 5))
SHAPES = {"diagonal": (6, 2), "tied": (2, 2), "spherical": (6,)}


@pytest.mark.parametrize("covariance", SHAPES)
@pytest.mark.parametrize("prior", ["vmm", "gmm"])
def test_a_fit_finds_clusters_settles_and_is_saved(prior, covariance, tmp_path):
    settings = {**TINY, "epochs": 30, "m_prior": 32, **({"init_centres": "encoded"} if prior == "gmm" else {})}
    model = VMM(**settings, prior=prior, component_covariance=covariance).fit(X)
    assert model.vae_.prior.precision_raw.shape == SHAPES[covariance]
    assert adjusted_rand_score(TRUTH, model.labels_) > 0.95 and model.n_clusters_ == 3
    model.save(tmp_path / "model.pt")
    again = VMM.load(tmp_path / "model.pt")
    assert again.component_covariance == covariance
    np.testing.assert_array_equal(again.score_samples(X, 5), model.score_samples(X, 5))


def test_a_fit_of_cells_with_a_tied_covariance():
    model = SingleCellVMM(**TINY, epochs=2, batch_key="batch", component_covariance="tied").fit(planted(60))
    assert model.vae_.prior.precision_raw.shape == (2, 2)


@pytest.mark.parametrize("estimator", [VMM, SingleCellVMM])
def test_a_students_mixture_is_fitted_saved_and_not_settled(estimator, tmp_path):
    rows = X if estimator is VMM else planted(60)
    settings = {**TINY, "epochs": 4, "freeze_after": 1, "m_prior": 4}
    model = estimator(**settings, prior="student_t", component_df=3, component_covariance="diagonal").fit(rows)
    prior = model.vae_.prior
    assert type(prior) is StudentMixture and prior.df == 3 and prior.precision_raw.shape == (6, 2)
    assert not can_settle(prior) and len(np.unique(model.cluster_of_component_)) == 6
    model.save(tmp_path / "model.pt")
    again = estimator.load(tmp_path / "model.pt")
    np.testing.assert_array_equal(again.score_samples(rows, 5), model.score_samples(rows, 5))
    p_z, z, expected = prior(model.vae_.encoder), torch.randn(9, 2), 0.0
    for weight, loc, tril in zip(p_z.weights, prior.mu, prior.precision_tril, strict=True):
        shape = torch.linalg.inv(tril @ tril.T).detach().numpy()
        expected = expected + weight.item() * stats.multivariate_t(loc.detach().numpy(), shape, 3).pdf(z.numpy())
    np.testing.assert_allclose(p_z.log_prob(z.to(prior.mu)).exp().detach().numpy(), expected, rtol=1e-4)


def test_an_outlier_widens_a_students_component_less():
    """Of rows of which one is far off, both by maximum likelihood."""
    z, widths = torch.randn(200, D), []
    z[0] = 60.0
    for prior in (GaussianMixture(torch.zeros(1, D)), StudentMixture(torch.zeros(1, D), df=3.0)):
        optimizer = torch.optim.Adam(prior.parameters(), lr=0.1)
        for _ in range(100):
            optimizer.zero_grad()
            (-prior().log_prob(z).mean()).backward()
            optimizer.step()
        widths.append(torch.linalg.inv(prior.precision_tril[0] @ prior.precision_tril[0].T).trace().item())
    assert widths[1] < 0.5 * widths[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"covariance": "tied"}, "that of the prior's components is component_covariance"),
        ({"covariance": "round"}, "covariance='round' should be one of ('full', 'diagonal')"),
        (
            {"component_covariance": "round"},
            "component_covariance='round' should be one of ('full', 'diagonal', 'tied'",
        ),
        ({"component_df": 3}, "component_df=3 has no effect with prior='vmm', which takes "),
        ({"component_df": -1, "prior": "student_t"}, "component_df=-1 should be a positive number"),
    ],
)
def test_settings_that_do_not_fit(settings, expected):
    assert expected in message_of(lambda: VMM(**TINY, epochs=1, **settings).fit(X))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_families_say_whether_the_dimensions_are_independent(covariance):
    family = COVARIANCES[covariance]
    raw = family.start(3, 2)
    tril = family.tril(raw + torch.randn(raw.shape), 3, 2)
    assert family.independent_axes == torch.equal(tril, torch.diag_embed(tril.diagonal(dim1=-2, dim2=-1)))


class SharedSpherical(Spherical):
    """A family of one's own: one variance for all components and directions."""

    name, per_component = "shared_spherical", False

    def start(self, latent_dim, n_components):
        return super().start(latent_dim, 1)

    def tril(self, raw, latent_dim, n_components):
        return super().tril(raw, latent_dim, 1).expand(n_components, -1, -1)


def test_a_family_of_ones_own(monkeypatch, tmp_path):
    model = clone(VMM(**TINY, epochs=30, m_prior=32, component_covariance=SharedSpherical())).fit(X)
    tril = model.vae_.prior.precision_tril
    assert model.vae_.prior.precision_raw.shape == (1,) and (tril == tril[0, 0, 0] * torch.eye(2).to(tril)).all()
    assert adjusted_rand_score(TRUTH, model.labels_) > 0.95
    model.save(tmp_path / "model.pt")
    assert "covariance='shared_spherical' should be one of" in message_of(lambda: VMM.load(tmp_path / "model.pt"))
    monkeypatch.setitem(COVARIANCES, "shared_spherical", SharedSpherical())
    again = VMM.load(tmp_path / "model.pt")
    np.testing.assert_array_equal(again.score_samples(X, 5), model.score_samples(X, 5))


def test_the_command_line_takes_them(tmp_path):
    np.save(tmp_path / "x.npy", X)
    given = ["--dataset", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run"), "--epochs", "1", "--quiet"]
    given += ["--hidden", "8", "--components", "4", "--latent-dim", "2", "--prior", "student_t"]
    assert main([*given, "--component-covariance", "spherical", "--component-df", "4"]) == 0
    prior = VMM.load(tmp_path / "run" / "model.pt").vae_.prior
    assert type(prior) is StudentMixture and prior.df == 4 and prior.covariance.name == "spherical"
