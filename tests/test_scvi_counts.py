"""The log-densities of counts that take the place of scvi-tools' own in training."""

import warnings

import pytest
import torch
from scvi_common import TRAIN, adapted, float32, make, scvi  # noqa: F401  a fixture among them

from pyro_vmm.scvi import counts, modules
from pyro_vmm.scvi.counts import distributions, quick

pytestmark = pytest.mark.filterwarnings("ignore")  # those of lightning
MEANS, DISPERSIONS, GATES = [1e-12, 1e-3, 0.4, 30.0, 1e4], [1e-2, 0.7, 50.0, 1e4], [-30.0, -1.0, 4.0]
VALUES = [0.0, 1.0, 2.5, 7.0, 300.0, 20_000.0]


def grid(gated: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Values, and parameters with gradients: every combination, in float64, where scvi-tools' own form is accurate."""
    axes = [torch.tensor(values, dtype=torch.float64) for values in (VALUES, MEANS, DISPERSIONS, GATES[: 3**gated])]
    value, *parameters = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    return value, [each.clone().requires_grad_() for each in parameters[: 2 + gated]]


def distribution(mean, theta, gate=None):
    if gate is None:
        return distributions.NegativeBinomial(mu=mean, theta=theta)
    return distributions.ZeroInflatedNegativeBinomial(mu=mean, theta=theta, zi_logits=gate)


@pytest.mark.parametrize("gated", [False, True])
def test_values_and_gradients_are_scvi_tools(gated):
    value, parameters = grid(gated)
    found = []
    for make_quick in (quick, lambda p_x: p_x):
        log_p = make_quick(distribution(*parameters)).log_prob(value)
        # scvi-tools' zero-inflated one adds a dimension.
        found.append([log_p.view_as(value), *torch.autograd.grad(log_p.sum(), parameters)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_parameters_of_genes_are_shared_by_cells():
    mean, theta = torch.rand(3, 5) + 0.1, (torch.rand(5) + 0.1).requires_grad_()
    value = torch.poisson(5 * torch.rand(3, 5))
    found = []
    for make_quick in (quick, lambda p_x: p_x):
        log_p = make_quick(distribution(mean, theta)).log_prob(value)
        assert log_p.shape == (3, 5)
        found.append([log_p, *torch.autograd.grad(log_p.sum(), [theta])])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_all_else_is_scvi_tools():
    plain = distribution(torch.rand(4), torch.rand(4), torch.rand(4))
    found = quick(plain)
    assert isinstance(found, distributions.ZeroInflatedNegativeBinomial)
    assert type(plain) is distributions.ZeroInflatedNegativeBinomial
    assert torch.equal(found.mean, plain.mean) and torch.equal(found.variance, plain.variance)


def test_other_distributions_stay():
    class Own(distributions.NegativeBinomial):
        """With another density, perhaps."""

    mean, theta = torch.rand(4), torch.rand(4)
    for p_x in (Own(mu=mean, theta=theta), distributions.Poisson(mean), None):
        assert quick(p_x) is p_x


@pytest.mark.parametrize("gate", [None, torch.zeros(2)])
@pytest.mark.parametrize("value", [0.5, -1.0, torch.inf, torch.nan])
def test_values_that_are_no_counts_are_warned_of(gate, value):
    p_x = quick(distribution(torch.ones(2), torch.ones(2), gate))
    with pytest.warns(UserWarning, match="within the support") as warned:
        p_x.log_prob(torch.tensor([value, 1.0]))
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p_x.log_prob(torch.tensor([0.0, 1e6]))


@pytest.fixture
def seen(monkeypatch) -> set:
    """The classes of the quick distributions whose log-densities were computed."""
    found = set()
    for cls in counts.QUICK.values():
        real = cls.log_prob
        monkeypatch.setattr(
            cls, "log_prob", lambda self, value, real=real: (found.add(type(self)), real(self, value))[1]
        )
    return found


NB, ZINB = counts.QUICK.values()


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("SCVI", {}, {ZINB}),
        ("SCVI", {"gene_likelihood": "nb"}, {NB}),
        ("SCVI", {"gene_likelihood": "poisson"}, set()),
        ("LinearSCVI", {}, {NB}),
        ("SCANVI", {}, {ZINB}),
        ("TOTALVI", {}, {NB}),
        ("MULTIVI", {}, {ZINB}),
        ("PEAKVI", {}, set()),
    ],
)
def test_they_are_those_of_training_alone(name, settings, expected, seen):
    """Answers come from scvi-tools' own code."""
    model = make(getattr(adapted, name), n_components=4, **settings)
    model.train(max_epochs=1, **TRAIN)
    assert seen == expected
    seen.clear()
    model.get_elbo(), model.get_reconstruction_error()
    assert not seen
    # In a second training modules are as if they did not train.
    model.train(max_epochs=1, **TRAIN)
    assert seen == expected


def test_all_is_stock_with_its_prior(seen):
    make(adapted.SCVI, prior="standard_normal").train(max_epochs=1, **TRAIN)
    assert not seen


NegativeBinomial = distributions.NegativeBinomial


def test_methods_of_other_code_stay():
    class Own(adapted.STOCK["TOTALVI"]._module_cls):
        def get_reconstruction_loss(self, *args):
            return NegativeBinomial(*args)

    assert counts.quick_method(Own, "get_reconstruction_loss") is None
    assert counts.quick_method(Own, "loss") is None, "it makes no distribution of counts"
    assert counts.quick_method(Own, "missing") is None
    stock = adapted.STOCK["TOTALVI"]._module_cls.get_reconstruction_loss
    assert counts.quick_method(adapted.STOCK["TOTALVI"]._module_cls, "get_reconstruction_loss") is not stock
    assert stock.__globals__["NegativeBinomial"] is distributions.NegativeBinomial


@pytest.mark.parametrize("name", ["SCVI", "TOTALVI", "MULTIVI"])
def test_a_fit_is_that_of_scvi_tools_densities(name, monkeypatch):
    losses, ends = [], []
    for stock in (False, True):
        if stock:
            monkeypatch.setattr(modules.WithPrior, "_is_quick", lambda self: False)
        model = make(getattr(adapted, name), n_components=4)
        model.train(max_epochs=3, **TRAIN)
        losses.append(torch.tensor(model.history["elbo_train"].to_numpy(float)))
        ends.append(torch.cat([each.detach().flatten() for each in model.module.parameters()]))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
    assert not torch.equal(*ends), "the densities differ in rounding"
