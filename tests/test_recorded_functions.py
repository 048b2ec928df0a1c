"""Recorded functions: the outputs, gradients and random numbers of the function, and what can't be recorded."""

import pytest
import torch
from torch import nn

from pyro_vmm.runtime.captured import MOST_SHAPES, Captured
from pyro_vmm.runtime.operations import Operations


class Density(nn.Module):
    """A function of two tensors with noise; one parameter has no part in it, and one needs no gradient."""

    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(3, 4), nn.Linear(2, 2)
        self.fixed = nn.Parameter(torch.ones(4), requires_grad=False)
        self.power = 2

    def forward(self, x, weights):
        hidden = self.layer(x).tanh() * self.fixed + 0.1 * torch.randn(4)
        y = (weights * hidden**self.power).logsumexp(-1)
        return y, hidden.detach().softmax(-1)


def steps(module, function, n=7, size=5):
    """The outputs and gradients of some calls whose arguments differ, in a graph with more around it."""
    numbers, found = torch.Generator().manual_seed(0), []
    torch.manual_seed(1)
    for _ in range(n):
        start = torch.randn(size, 3, generator=numbers).requires_grad_()
        x, weights = start.exp(), torch.rand(size, 4, generator=numbers)
        y, others = function(x, weights)
        assert not others.requires_grad
        loss = (y * torch.randn(size, generator=numbers)).sum() + x.square().sum()
        inputs = [start, *module.layer.parameters()]
        found.append([y.detach(), others, *torch.autograd.grad(loss, inputs), torch.get_rng_state()])
    return found


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Density()


def test_all_numbers_are_those_of_the_function(module):
    repeated = Captured(module, module, Operations(2))
    torch.testing.assert_close(steps(module, repeated), steps(module, module), rtol=0, atol=0)
    assert repeated.obstacle is None
    assert repeated._proven


def test_once_proven_the_function_does_not_run(module):
    calls = []
    repeated = Captured(lambda *x: calls.append(x) or module(*x), module, Operations(2))
    for size in (5, 3):
        steps(module, repeated, 7, size)
    assert len(calls) == 2 * (2 + 2 + 1)  # as it is, recorded and for that step, proven; for both sizes


def test_parameters_that_change_in_place_are_followed(module):
    def trained(function):
        optimizer, found = torch.optim.Adam(module.layer.parameters(), lr=0.1), []
        torch.manual_seed(1)
        for _ in range(8):
            optimizer.zero_grad()
            loss = function(torch.ones(5, 3, requires_grad=True), torch.ones(5, 4))[0].sum()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    before = {name: value.clone() for name, value in module.state_dict().items()}
    one = trained(Captured(module, module, Operations(1)))
    module.load_state_dict(before)
    assert trained(module) == one


def test_a_change_of_a_number_or_of_what_is_trained_ends_a_recording(module):
    repeated = Captured(module, module, Operations(1))
    steps(module, repeated)
    repeated.refresh()
    assert repeated._proven
    module.power = 3
    repeated.refresh()
    assert not repeated._proven
    torch.testing.assert_close(steps(module, repeated), steps(module, module), rtol=0, atol=0)
    module.fixed.requires_grad_(True)
    repeated.refresh()
    assert not repeated._proven
    steps(module, repeated)
    module.layer.weight.data = torch.zeros(4, 3)
    repeated.refresh()
    torch.testing.assert_close(steps(module, repeated), steps(module, module), rtol=0, atol=0)


def test_arguments_of_another_layout_have_a_recording_of_their_own(module):
    repeated = Captured(module, module, Operations(1))
    x, weights = torch.randn(5, 3, requires_grad=True), torch.rand(4, 5).mT
    for each in (weights.contiguous(), weights):
        for _ in range(4):
            torch.manual_seed(0)
            found = repeated(x, each)[0]
            torch.manual_seed(0)
            torch.testing.assert_close(found, module(x, each)[0], rtol=0, atol=0)
    assert repeated.obstacle is None and len(repeated._proven) == 2
    for size in range(6, 12):
        steps(module, repeated, 4, size)
    assert len(repeated._proven) == MOST_SHAPES


def test_what_can_not_be_recorded_runs_as_it_is(module):
    def with_number(x, weights):
        y, others = module(x, weights)
        return y * x.detach().sum().item(), others

    count = [0]

    def with_variable(x, weights):
        count[0] += 1
        y, others = module(x, weights)
        return y * count[0], others

    def with_variable_gradient(x, weights):
        count[0] += 1
        y, others = module(x, weights)
        return y + count[0] * (x - x.detach()).sum(-1), others  # the sum is zero, and its gradient is not

    gradients = (with_variable_gradient, "other numbers than what")
    for function, message in (gradients, (with_number, "takes a number"), (with_variable, "other numbers than what")):
        repeated = Captured(function, module, Operations(2))
        found = steps(module, repeated)
        assert message in repeated.obstacle
        if function is with_number:
            torch.testing.assert_close(found, steps(module, function), rtol=0, atol=0)


def test_without_a_recorder_a_function_runs_as_it_is(module):
    repeated = Captured(module, module, None)
    torch.testing.assert_close(steps(module, repeated), steps(module, module), rtol=0, atol=0)
