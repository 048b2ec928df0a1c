"""Draws of groups, changes and their posterior, expected false calls, shares: against closed forms and SciPy."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import log_softmax, softmax

from pyro_vmm.analysis import (
    Changes,
    Population,
    Sums,
    Tally,
    abundance,
    batch_mixing,
    changes,
    choose,
    expected_fdr,
    log_fold_changes,
    model_assisted_means,
    share_changes,
    shares_compared,
    shrunken,
    unshrunken,
)
from pyro_vmm.analysis.abundance import ClusterCounts, log_shares, moderated
from pyro_vmm.analysis.explanation import CLUSTERS_SHOWN, Explanation
from pyro_vmm.analysis.expression import ComparedCells

N, J, V = 400, 2, 3


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, V)).astype(np.float32)


def one_hot(labels: np.ndarray, groups: int = J) -> np.ndarray:
    return (labels[:, None] == np.arange(groups)).astype(np.float32)


def summed(population: Population, values: np.ndarray, draws: int = 1000, block: int = 100, seed: int = 3) -> Sums:
    sums = Sums(population, values.shape[1], draws, seed)
    for start in range(0, len(population), block):
        sums.add(values[population.rows[start : start + block]])
    return sums


# Draws


def test_draws_of_a_mean_have_the_moments_of_the_bayesian_bootstrap(values):
    """Rubin (1981): mean x-bar, and variance s^2 / (n + 1) with the variance s^2 over n rows."""
    labels = np.arange(N) % 4 > 0  # 300 rows in group 1
    sums = summed(Population.of(one_hot(labels), N, 0), values)
    own, elsewhere = sums.compared(1)
    x = values[labels]
    np.testing.assert_allclose(own.mean(0), x.mean(0), atol=5 * x.std() / 300**0.5 / 1000**0.5)
    np.testing.assert_allclose(own.var(0), x.var(0) / 301, rtol=0.15)
    np.testing.assert_allclose(elsewhere.mean(0), values[~labels].mean(0), atol=0.02)


def test_a_row_that_hesitates_is_in_as_many_draws_as_its_probability_says_and_widens_the_mean():
    x = np.repeat([[0.0], [10.0]], 100, 0).astype(np.float32)
    sure = one_hot(np.repeat([0, 1], 100))
    doubtful = sure.copy()
    doubtful[90:110] = 0.5
    narrow, wide = (summed(Population.of(q, N, 0), x).compared(0)[0] for q in (sure, doubtful))
    assert narrow.std() == 0
    # 90 rows of 0 and 20 halves, of which 10 are of 10: 50 / 100 in expectation.
    assert abs(wide.mean() - 0.5) < 0.02 and wide.std() > 0.1


def test_draws_do_not_depend_on_blocks_and_follow_the_seed(values):
    q = np.random.default_rng(1).dirichlet([1, 1], N).astype(np.float32)
    population = Population.of(q, N, 0)
    one, other, another = (summed(population, values, 20, block, seed) for block, seed in ((7, 3), (N, 3), (N, 4)))
    np.testing.assert_allclose(one.totals, other.totals, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(one.weights, other.weights, rtol=1e-5)
    assert not np.allclose(one.weights, another.weights, rtol=1e-2)


def test_rows_of_a_large_group_stand_for_those_left_out():
    labels = np.r_[np.zeros(1000, int), np.ones(30, int)]
    population = Population.of(one_hot(labels), 50, 0)
    assert len(population) == 80 and (np.diff(population.rows) > 0).all()
    np.testing.assert_array_equal(population.stands_for, np.r_[np.full(50, 20.0), np.ones(30)])
    weights = summed(population, np.zeros((1030, 1), np.float32)).weights
    np.testing.assert_allclose(weights.mean(1), [1000, 30], rtol=0.03)


def test_counts_of_rows_that_stand_for_others_are_no_more_than_were_seen():
    """The table of rows that stand for 20 each is that of the same rows for themselves: as many counts were seen."""
    random = np.random.default_rng(0)
    population = Population.of(one_hot(np.arange(N) % 2), N, 0)
    expected = random.gamma(1.0, 0.02, 40) * np.ones((N, 40))
    rows = np.concatenate([expected / 100, random.poisson(expected), expected], 1)

    def table(stands_for: np.ndarray) -> pd.DataFrame:
        sums = summed(replace(population, stands_for=stands_for), rows)
        compared = ComparedCells(sums, np.ones((2, 40)) * sums.population.size[:, None], np.arange(40), True)
        return compared.table(0, 0.5, 0.05, 0.9, 1e-5)

    own, repeated = table(np.ones(N, np.float32)), table(np.full(N, 20, np.float32))
    pd.testing.assert_frame_equal(repeated, own, rtol=1e-4)
    # Where rows of one group alone stand for others, the other group's counts are as they were.
    mixed = np.where(np.arange(N) % 2, 20, 1).astype(np.float32)
    np.testing.assert_allclose(replace(population, stands_for=mixed).repeats(0), [1, 20])
    two = Population(np.arange(3), np.eye(3)[[0, 1, 1], :2], np.array([1, 1, 3], np.float32))
    np.testing.assert_allclose(two.size, [1, 4])
    np.testing.assert_allclose(two.repeats(0), [1, 10 / 4])  # a row of three counts three times


def test_rows_of_no_group_are_not_looked_at():
    q = np.zeros((10, 2), np.float32)
    q[3, 0] = q[7, 1] = 1
    np.testing.assert_array_equal(Population.of(q, 5, 0).rows, [3, 7])


def test_samples_that_differ_widen_the_mean():
    """Of D samples that differ by a normal of variance v alone, a mean has the variance v / (D + 1)."""
    random = np.random.default_rng(0)
    samples = np.repeat(np.arange(40), 25)
    effect = random.normal(size=40)
    x = effect[samples, None].astype(np.float32)
    q = np.ones((len(x), 1), np.float32)
    independent = summed(Population.of(q, len(x), 0), x)
    together = summed(Population.of(q, len(x), 0, samples), x)
    means = [sums.totals[0] / sums.weights[0][:, None] for sums in (independent, together)]
    assert means[0].var() < 0.1 * effect.var() / 41
    # The cells' own weights are in it too: (1 + 1/25) of the samples' variance, to first order.
    assert means[1].var() == pytest.approx(effect.var() / 41 * (1 + 1 / 25), rel=0.2)


# Means and changes


def test_the_counts_set_right_what_the_decoder_got_wrong():
    """A decoder that is off by a factor in one group: the factor comes back where there are many counts."""
    expression = np.array([[[10.0, 10.0]]])  # the sum over ten rows
    found = model_assisted_means(expression, np.array([[[400.0, 3.0]]]), np.array([[[200.0, 1.0]]]), np.array([[10.0]]))
    np.testing.assert_allclose(found[0, 0], [401 / 201, 4 / 2])
    # Of values that are no counts the mean residual is added.
    found = model_assisted_means(expression, np.array([[[12.0, 5.0]]]), expression, np.array([[10.0]]), counts=False)
    np.testing.assert_allclose(found[0, 0], [1.2, 0.5])


def test_log_fold_changes_of_known_means():
    one, other = np.full((50, 2), [0.4, 1e-9]), np.full((50, 2), [0.1, 1e-12])
    many = np.full((2, 2), 1e9)
    found = log_fold_changes(one, other, 1e-6, many, many, np.array([1e6, 1e6]))
    np.testing.assert_allclose(found.estimate, [2, 0], atol=2e-3)  # far below the pseudo-count there is no change


def test_the_error_of_a_log_fold_change_is_at_least_that_of_poisson_counts():
    """log of a Poisson count of mean m has the variance 1 / m, for large m: by simulation."""
    counts = np.random.default_rng(0).poisson(200, (20_000, 2))
    expected = np.log2(counts[:, 0] / counts[:, 1]).std()
    same = np.full((50, 1), 1e-2)
    many = np.full((2, 1), 200.0)
    found = log_fold_changes(same, same, 1e-9, many, many, np.array([1e6, 1e6]))
    assert found.error[0] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_gene_that_a_group_lacks_has_the_evidence_of_its_counts(lacking):
    """40 counts are expected in the group and none is there: SciPy's exact test of two Poisson means, as a z."""
    observed, expected = np.array([[40.0], [400.0]]), np.array([[40.0], [400.0]])
    observed[lacking] = 0
    means = np.full((2, 200, 1), 1e-3)
    means[lacking] *= 1 / (1 + expected[lacking, 0])
    found = log_fold_changes(*means, 1e-6, observed, expected, np.array([1e6, 1e6]))
    n = observed.sum()
    p = stats.binomtest(0, int(n), expected[lacking, 0] / expected.sum()).pvalue
    z = abs(found.estimate[0]) / found.error[0]
    assert z == pytest.approx(stats.norm.isf(p / 2), rel=0.15)
    assert np.sign(found.estimate[0]) == (-1 if lacking == 0 else 1)


@pytest.mark.parametrize("donors", [2, 3, 6])
def test_genes_of_few_donors_are_not_called_by_chance(donors):
    """Log-normal donors, 300 genes without a change: the bootstrap of two donors has a third of their variance."""
    random, condition = np.random.default_rng(0), np.repeat([0, 1], donors)
    levels = 2.0 ** random.normal(0, 1, (2 * donors, 300))
    x = random.poisson(5 * np.repeat(levels, 30, axis=0)).astype(np.float32)
    sample, flat = np.repeat(np.arange(2 * donors), 30), np.full_like(x, 5.0)
    q = np.eye(2)[condition[sample]]
    population = Population(np.arange(len(x)), q, np.ones(len(x), np.float32), sample)
    sums = Sums(population, 900, 200, 0)
    sums.add(np.concatenate([flat / 1500, x, flat], 1))
    compared = ComparedCells(sums, np.ones((2, 300)), np.arange(300), True)
    assert population.units(0).tolist() == [donors, donors]
    table = compared.table(0, 0.5, 0.05, 0.95, 1e-6)
    assert table["called"].sum() <= 1
    assert ((table["lfc_low"] < 0) & (table["lfc_high"] > 0)).mean() > 0.9


@pytest.mark.parametrize("rows", [3, 5, 10, 100])
@pytest.mark.parametrize("share", [None, 0.5, 0.1])
def test_features_of_few_rows_are_not_called_by_chance(rows, share):
    """Normal features, and ones that are 0 or 1, which may have one value in three rows."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows + 500, 400)) if share is None else random.random((rows + 500, 400)) < share
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    q = np.repeat(np.eye(2), [rows, 500], axis=0)
    population = Population(np.arange(len(x)), q, np.ones(len(x), np.float32))
    sums = Sums(population, 400, 100, 0)
    sums.add(x)
    found = changes(*sums.compared(0), population.units(0), np.ones(400))
    table = found.table("difference", 0.5, 0.05, 0.95, shrink=False)
    assert table["called"].mean() <= 0.01
    # A feature that one row in ten has is far from normal in three rows.
    assert ((table["difference_low"] < 0) & (table["difference_high"] > 0)).mean() > (0.8 if share == 0.1 else 0.9)


def test_a_small_panel_has_its_mode_at_zero():
    """Most of 20 features change: a mode fitted to them would be their change, and the others' would be false calls."""
    estimate, error = np.repeat([1.0, 0.0], [14, 6]), np.full(20, 0.3)
    posterior = Changes(estimate, error).posterior(delta=0.5)
    assert (posterior.mean[14:] < 0.2).all() and (posterior.mean[:14] > 0.6).all()


def test_a_change_that_nothing_is_known_of_is_not_surely_none():
    """12 of 30 cells beside 18 of 30: the interval is of the order of the threshold, not a hundredth of it."""
    table = shares_compared(np.array([[[12.0, 18.0], [18.0, 12.0]]]), np.array([0, 1]), False, 0.5, 0.05, 0.95)
    assert (table["log2_ratio_high"] - table["log2_ratio_low"] > 0.5).all() and not table["called"].any()


def test_the_error_of_a_difference_is_that_of_its_draws():
    random = np.random.default_rng(0)
    draws = random.normal(3, 2, (4000, 1)), random.normal(1, 1, (4000, 1))
    found = changes(*draws, np.array([1e6, 1e6]))
    assert found.estimate[0] == pytest.approx(2, abs=0.15) and found.error[0] == pytest.approx(5**0.5, rel=0.05)


# Posterior


def test_without_shrinkage_the_posterior_is_normal():
    posterior = unshrunken(np.array([0.3, -1.0]), np.array([0.5, 0.2]))
    normal = stats.norm([0.3, -1.0], [0.5, 0.2])
    np.testing.assert_allclose(posterior.mean, [0.3, -1])
    np.testing.assert_allclose(posterior.beyond(0.5), normal.cdf(-0.5) + normal.sf(0.5))
    np.testing.assert_allclose(posterior.quantile(0.9), normal.ppf(0.9), atol=1e-4)


def test_a_normal_prior_is_found_and_gives_the_conjugate_posterior():
    random = np.random.default_rng(0)
    truth = random.normal(0.2, 0.7, 2000)
    error = random.uniform(0.3, 0.9, 2000)
    estimate = truth + error * random.normal(size=2000)
    posterior = shrunken(estimate, error)
    conjugate = 0.2 + 0.49 / (0.49 + error**2) * (estimate - 0.2)
    # Other priors fit 2000 estimates as well, and differ in the tails.
    assert np.abs(posterior.mean - conjugate).mean() < 0.05
    assert np.corrcoef(posterior.mean, conjugate)[0, 1] > 0.99
    low, high = posterior.quantile(0.05), posterior.quantile(0.95)
    assert ((low < truth) & (truth < high)).mean() == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("null", [0.5, 0.9])
def test_expected_false_calls_are_real_ones(null):
    """Changes of a known kind, noise of a known size: among the called, as many are false as expected."""
    random = np.random.default_rng(0)
    truth = np.where(random.random(2500) < null, 0.0, random.normal(0, 1.5, 2500))
    error = random.uniform(0.1, 0.6, 2500)
    table = Changes(truth + error * random.normal(size=2500), error).table("lfc", 0.5, 0.1, 0.95)
    false = np.abs(truth) <= 0.5
    assert false[table["called"]].mean() == pytest.approx(0.1, abs=0.04)
    assert ((table["lfc_low"] < truth) & (truth < table["lfc_high"])).mean() > 0.93
    # A flat prior expects far too few.
    flat = Changes(truth + error * random.normal(size=2500), error).table("lfc", 0.5, 0.1, 0.95, shrink=False)
    assert table["called"].sum() > 0 and false[flat["called"]].mean() > false[table["called"]].mean()


def test_estimates_that_are_all_alike_have_a_posterior():
    posterior = shrunken(np.full(5, 0.3), np.full(5, 0.1))
    assert np.isfinite(posterior.mean).all() and np.isfinite(posterior.quantile(0.9)).all()


def test_expected_fdr_is_the_running_mean_of_what_is_not_probable():
    found = expected_fdr(np.array([0.5, 1.0, 0.9]))
    np.testing.assert_allclose(found, [(0 + 0.1 + 0.5) / 3, 0, 0.05])
    # Features of one probability are called together.
    np.testing.assert_allclose(expected_fdr(np.array([0.8, 0.9, 0.8, 0.5])), [0.5 / 3, 0.1, 0.5 / 3, 0.25])


# Clusters


def test_the_summary_counts_rows_and_names_where_they_hesitate():
    q = np.array([[0.95, 0.05, 0], [0.6, 0.4, 0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    weights, cluster_of_component = np.array([0.5, 0.4, 0.1]), np.array([0, 1, 1])
    whole = Tally(3)
    assert whole.add(q).tolist() == [0, 0, 1, 1]
    expected = {
        "weight": [0.5, 0.4],
        "rows": [2, 2],
        "share": [0.5, 0.5],
        "confidence": [0.775, 1.0],
        "hesitating": [0.5, 0.0],
        "hesitates_with": ["1", ""],
        "components": [1, 2],
    }
    expected = pd.DataFrame(expected, index=pd.Index([0, 1], name="cluster"))
    pd.testing.assert_frame_equal(whole.table(weights, cluster_of_component), expected)
    in_parts = Tally(3)
    assert [in_parts.add(rows).tolist() for rows in (q[:1], q[1:3], q[3:])] == [[0], [0, 1], [1]]
    pd.testing.assert_frame_equal(in_parts.table(weights, cluster_of_component), expected)


def test_the_text_says_how_many_clusters_it_leaves_out():
    """They are in the order of their numbers: those left out may be the larger ones."""
    tally = Tally(CLUSTERS_SHOWN + 3)
    tally.add(np.eye(CLUSTERS_SHOWN + 3))
    table = tally.table(np.ones(CLUSTERS_SHOWN + 3), np.arange(CLUSTERS_SHOWN + 3))
    none = np.empty(0)
    found = Explanation(table, [none] * len(table), none, none, None, pd.DataFrame())
    assert str(found).endswith("\nand 3 more")


def test_the_overlap_is_the_mean_probability_of_the_rows_that_each_cluster_wins():
    """By hand; cluster 1 wins no row, and what it has is missing from the sums."""
    q = np.array([[0.7, 0.1, 0.2], [0.9, 0.1, 0.0], [0.3, 0.0, 0.7]])
    tally = Tally(3)
    for rows in (q[:2], q[2:]):
        tally.add(rows)
    expected = pd.DataFrame([[0.8, 0.1], [0.3, 0.7]], pd.Index([0, 2], name="cluster"), pd.Index([0, 2], name="other"))
    pd.testing.assert_frame_equal(tally.overlap(), expected)


def test_of_a_large_group_so_many_rows_are_chosen():
    group = np.repeat([0, -1, 1, 2], [50, 5, 3, 8])
    stands_for = choose(group, 3, 10, seed=0)
    assert [np.count_nonzero(stands_for[group == j]) for j in (-1, 0, 1, 2)] == [0, 10, 3, 8]
    np.testing.assert_allclose([stands_for[group == j].sum() for j in range(3)], [50, 3, 8])
    assert (stands_for != choose(group, 3, 10, seed=1)).any()


def test_batch_mixing_is_one_as_in_all_cells_and_zero_in_one_batch():
    overall = np.array([0.7, 0.2, 0.1])
    np.testing.assert_allclose(batch_mixing(np.array([overall, [0, 1, 0]]), overall), [1, 0], atol=1e-12)
    np.testing.assert_array_equal(batch_mixing(np.ones((2, 1)), np.ones(1)), [1, 1])


# Shares


def test_shares_of_sure_cells_are_beta():
    """Two clusters: Dirichlet(counts + 1/2) is Beta; moments of the logarithms by SciPy's draws."""
    counts = np.array([[[30.0, 70.0], [60.0, 40.0]]])
    one = np.log2(stats.beta.rvs(30.5, 70.5, size=200_000, random_state=1))
    other = np.log2(stats.beta.rvs(60.5, 40.5, size=200_000, random_state=2))
    found = log_shares(counts)
    np.testing.assert_allclose(found.mean[:, 0], [one.mean(), other.mean()], atol=2e-3)
    np.testing.assert_allclose(found.counting[:, 0], [one.var(), other.var()], rtol=1e-2)
    np.testing.assert_array_equal(found.hesitation, 0)
    assert share_changes(counts, np.array([0, 1]), False).estimate[0] == pytest.approx((one - other).mean(), abs=2e-3)
    table = shares_compared(counts, np.array([0, 1]), False, 0.5, 0.05, 0.9)
    assert table.loc[0, "share1"] == pytest.approx(2 ** one.mean(), abs=1e-3)


@pytest.mark.parametrize("rows", [(50, 0), (0, 50), (300, 0), (50, 2), (30, 60)])
def test_a_ratio_has_the_evidence_of_the_likelihood_ratio(rows):
    """SciPy's G test of the table of two conditions; of a cluster that one condition lacks, too."""
    counts = np.array([[rows[0], 1000 - rows[0]], [rows[1], 1000 - rows[1]]])
    found = share_changes(counts[None].astype(float), np.array([0, 1]), False)
    g = stats.chi2_contingency(counts, correction=False, lambda_="log-likelihood").statistic
    assert (found.estimate[0] / found.error[0]) ** 2 == pytest.approx(g)
    assert np.sign(found.estimate[0]) == np.sign(rows[0] - rows[1])


@pytest.mark.parametrize("donors", [None, 3])
def test_a_cluster_that_one_condition_lacks_is_called(donors):
    """Called as surely as one of which two rows are left there, and the smaller its number of rows, the less surely."""
    condition = np.array([0, 1]) if donors is None else np.repeat([0, 1], donors)

    def compared(here: int, there: int) -> pd.Series:
        rest = [200.0, 160, 160, 160, 160, 110]
        counts = np.array([[here, *rest], [there, *rest]])[condition]
        return shares_compared(counts[None], condition, donors is not None, 0.5, 0.1, 0.95).loc[0]

    lacking = compared(50, 0)
    assert lacking["called"] and lacking["log2_ratio_low"] > 2 and compared(50, 2)["called"]
    probabilities = [compared(n, 0)["probability"] for n in (1, 5, 20, 50, 300)]
    assert probabilities == sorted(probabilities) and probabilities[0] < 0.5


def test_draws_that_differ_widen_the_error_of_a_share():
    """The law of total variance: that within a draw of counts, and that of the means between draws."""
    counts = np.array([[[30.0, 70.0], [60.0, 40.0]], [[50.0, 50.0], [60.0, 40.0]]])
    each, both = [log_shares(draw[None]) for draw in counts], log_shares(counts)
    means = np.stack([draw.mean for draw in each])
    np.testing.assert_allclose(both.mean, means.mean(0))
    np.testing.assert_allclose(both.counting, np.mean([draw.counting for draw in each], 0))
    np.testing.assert_allclose(both.hesitation, means.var(0))
    error = share_changes(counts, np.array([0, 1]), False).error
    sure = share_changes(counts.mean(0)[None], np.array([0, 1]), False).error
    np.testing.assert_allclose(error**2, sure**2 + means.var(0).sum(0), rtol=0.05)


def test_the_spread_between_samples_is_pooled_moderated_and_of_a_t_distribution():
    """Samples of so many cells that their shares are known: the p-value of a moderated t test."""
    logs = np.random.default_rng(0).normal(0, 0.5, (6, 5))
    shares = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    condition = np.array([0, 0, 0, 1, 1, 1])
    found = share_changes(1e9 * shares[None], condition, True)
    one, other = np.log2(shares[:3]), np.log2(shares[3:])
    np.testing.assert_allclose(found.estimate, one.mean(0) - other.mean(0), atol=1e-6)
    variance, freedom = moderated((one.var(0, ddof=1) + other.var(0, ddof=1)) / 2, 4)
    t = found.estimate / np.sqrt(variance * 2 / 3)
    p_values = 2 * stats.norm.sf(np.abs(found.estimate) / found.error)
    np.testing.assert_allclose(p_values, 2 * stats.t.sf(np.abs(t), freedom), rtol=1e-5)


def test_samples_without_a_row_have_the_spread_of_counting():
    """None of 4 samples has a row of the last cluster: they look alike, and yet say little."""
    counts = np.array([[[50.0, 50.0, 0.0]] * 4])
    found = share_changes(counts, np.array([0, 0, 1, 1]), True)
    assert found.error[2] > 2 and found.error[0] < 1


def test_moderated_variances_are_those_of_limma():
    """Of variances of a scaled inverse chi-squared distribution the parameters come back: Smyth (2004)."""
    random = np.random.default_rng(0)
    truth = 10 * 0.3 / random.chisquare(10, 20_000)
    estimates = truth * random.chisquare(4, 20_000) / 4
    found, freedom = moderated(estimates, 4)
    assert freedom == pytest.approx(14, rel=0.05)
    np.testing.assert_allclose(found, (10 * 0.3 + 4 * estimates) / 14, rtol=0.05)
    same, freedom = moderated(np.full(3, 0.2), 4)
    assert freedom == 12 and np.ptp(same) == 0
    assert moderated(np.array([0.2]), 4) == (np.array([0.2]), 4)


@pytest.mark.parametrize("donors", [None, 4])
@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_expected_false_calls_of_shares_are_real_ones(donors, moved):
    """150 sets of 8 clusters of 5 to 1,000 cells: at an expected share of 0.1 at most 0.1 are false, of any fdr.

    A flat prior calls a cluster of a null in a fifth to a half of the sets.
    """
    random = np.random.default_rng(0)
    weights = np.log([5, 10, 20, 50, 100, 200, 500, 1000])
    n, spread = (1, 0.0) if donors is None else (donors, 0.4)
    condition = np.repeat([0, 1], n)
    false, found, true = [], 0, 0
    for _ in range(150):
        effect = np.where(random.random(8) < moved, random.choice([-1, 1], 8) * random.uniform(0.75, 2.5, 8), 0.0)
        centre = weights + np.log(2) * effect * (condition == 0)[:, None]
        many = random.normal(0, spread, (400, 1, 8)) + centre[[0, -1]]
        ratio = np.diff(log_softmax(many, -1).mean(0)[::-1], axis=0)[0] / np.log(2)
        shares = softmax(centre + random.normal(0, spread, (2 * n, 8)), -1)
        counts = np.stack([random.multinomial(1885 // n, share) for share in shares])
        called = shares_compared(counts[None], condition, donors is not None, 0.5, 0.1, 0.95)["called"].to_numpy()
        changed = np.abs(ratio) > 0.5
        false.append((called & ~changed).sum() / max(called.sum(), 1))
        found, true = found + (called & changed).sum(), true + changed.sum()
    assert np.mean(false) <= 0.05 + 0.05 * bool(moved)
    if moved:
        assert found / true > (0.5 if donors is None else 0.1)


def test_logarithms_of_shares_are_computed_once(monkeypatch):
    calls, real = [], abundance.log_shares
    monkeypatch.setattr(abundance, "log_shares", lambda counts: calls.append(counts) or real(counts))
    shares_compared(np.ones((1, 2, 3)), np.array([0, 1]), False, 0.5, 0.05, 0.95)
    assert len(calls) == 1


def test_a_cluster_of_one_cell_is_no_call():
    """Under a flat prior its ratio is beyond 0.5 with 90 %."""
    counts = np.array([[[1.0, 449.0], [0.0, 450.0]]])
    table = shares_compared(counts, np.array([0, 1]), False, 0.5, 0.5, 0.95)
    assert share_changes(counts, np.array([0, 1]), False).posterior(shrink=False).beyond(0.5)[0] > 0.85
    assert table.loc[0, "probability"] < 0.3 and not table.loc[0, "called"]


def test_the_probability_of_a_change_is_that_of_its_more_probable_side():
    posterior = unshrunken(np.array([0.0, 1.0]), np.array([2.0, 0.5]))
    normal = stats.norm([0.0, 1.0], [2.0, 0.5])
    np.testing.assert_allclose(posterior.beyond_on_a_side(0.5), normal.sf(0.5))


def test_a_known_mode_is_not_fitted():
    estimate = np.array([2.0, 2.1, 1.9])
    fitted, known = (shrunken(estimate, np.full(3, 0.5), mode=mode) for mode in (None, 0.0))
    assert abs(fitted.mean.mean() - 2) < 0.01 and known.mean.mean() < 1.9


def test_counts_of_cells_that_hesitate_vary():
    q = np.array([[1.0, 0.0]] * 50 + [[0.5, 0.5]] * 20)
    counts = ClusterCounts(q, np.zeros(70, int), 1, 4000, 0).counts
    assert counts.shape == (4000, 1, 2) and (counts.sum((1, 2)) == 70).all()
    assert counts[:, 0, 0].mean() == pytest.approx(60, abs=0.2) and counts[:, 0, 0].var() == pytest.approx(5, rel=0.1)
