"""Arguments that a prior or a likelihood does not take: all of them by the user's names, and what there is instead."""

from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
from common import message_of, planted

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.likelihoods import Normal, NormalExpression
from pyro_vmm.priors import GaussianMixture, Prior, StandardNormal, StudentMixture, VampMixture, VampPrior
from pyro_vmm.runtime.arguments import named_arguments

X = np.random.default_rng(0).normal(size=(40, 4))
TINY = {"n_components": 3, "latent_dim": 2, "hidden": (8,), "epochs": 1, "random_state": 0, "settle": False}
MIXTURE = "hyperprior, m_prior, expectation, responsibilities, covariance"


class Strict(StandardNormal):
    """It takes a setting of estimators, and gets all of them: it does not say which one it takes."""

    takes = Prior.takes

    def __init__(self, latent_dim, m_prior=256):
        super().__init__(latent_dim)


class Greedy(VampMixture):
    """It fails for another reason than an unknown argument."""

    def __init__(self, latent_dim, pseudo_inputs, **settings):
        super().__init__(latent_dim, pseudo_inputs, **settings)
        settings + 1


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        (partial(VampMixture, width=3, depth=2), f"VampMixture takes no width, depth; it takes {MIXTURE}"),
        (partial(GaussianMixture, df=3), f"GaussianMixture takes no df; it takes {MIXTURE}"),
        (partial(StudentMixture, dof=3), f"StudentMixture takes no dof; it takes df, {MIXTURE}; did you mean 'df'?"),
        (partial(VampPrior, m_prior=3), "VampPrior takes no m_prior; it takes none by name"),
        (partial(StandardNormal, scale=3), "StandardNormal takes no scale; it takes none by name"),
    ],
)
def test_of_a_partial_of_a_prior(prior, expected):
    told = message_of(lambda: VMM(**TINY, prior=prior).fit(X))
    assert told == f"prior=a partial of {prior.func.__name__}: {expected}"


def test_of_a_prior_that_does_not_say_what_it_takes():
    told = message_of(lambda: VMM(**TINY, prior=Strict, component_df=3).fit(X))
    assert told == (
        "prior=Strict: Strict takes no hyperprior, expectation, responsibilities, component_df; it takes m_prior. "
        "State in Strict.takes which settings of estimators it takes"
    )


def test_another_error_stays_as_it_is():
    told = message_of(lambda: VMM(**TINY, prior=partial(Greedy, m_prior=3)).fit(X))
    assert told.startswith("prior=a partial of Greedy: Greedy.build fails: unsupported operand type")


@pytest.mark.parametrize(
    ("likelihood", "options", "expected"),
    [
        ("normal", {"width": 3, "depth": 2}, "Normal takes no width, depth; it takes scale, initial_scale"),
        (Normal, {"scales": "scalar"}, "Normal takes no scales; it takes scale, initial_scale; did you mean 'scale'?"),
        (partial(Normal, width=3), {"depth": 2}, "Normal takes no width, depth; it takes scale, initial_scale"),
        ("bernoulli", {"width": 3}, "Bernoulli takes no width; it takes none by name"),
        ("categorical", {"width": 3}, "Categorical takes no width; it takes n_categories"),
        (lambda h: dist.Normal(h, 1.0), {"width": 3}, "a function takes no width; it takes outputs_per_feature"),
    ],
)
def test_of_a_likelihood(likelihood, options, expected):
    told = message_of(lambda: VMM(**TINY, likelihood=likelihood, likelihood_options=options).fit(np.abs(X).round()))
    assert told.startswith("likelihood_options={") and told.endswith(f" do not fit: {expected}")


@pytest.mark.parametrize(
    ("likelihood", "options", "expected"),
    [
        (
            "zinb",
            {"disp": "gene", "width": 3},
            "ZeroInflatedNegativeBinomialCounts takes no disp, width; it takes dispersion",
        ),
        (NormalExpression, {"width": 3}, "NormalExpression takes no width; it takes initial_scale"),
        (lambda h, n: dist.Poisson(n), {"width": 3}, "a function takes no width; it takes outputs_per_gene, counts"),
    ],
)
def test_of_a_likelihood_of_cells(likelihood, options, expected):
    model = SingleCellVMM(**TINY, likelihood=likelihood, likelihood_options=options)
    assert f"do not fit: {expected}" in message_of(lambda: model.fit(planted(40)))


def test_arguments_are_those_of_the_constructors_that_get_them():
    class Base:
        def __init__(self, a, b, c=1, *, d, e=2, **others): ...

    class Middle(Base):
        """It has the constructor of its base."""

    class Top(Middle):
        def __init__(self, x, y=2, *rest, c=3, **others): ...

    class Closed(Top):
        def __init__(self, f): ...

    assert named_arguments(Top, 1) == ("y", "c", "e") and named_arguments(Base, 1) == ("b", "c", "d", "e")
    assert named_arguments(Closed, 1) == () and named_arguments(Closed, 0) == ("f",)
