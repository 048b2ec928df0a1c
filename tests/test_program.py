"""Recorded operations as a program: what is made twice is made once, and only where it is the same."""

import pytest
import torch
from torch import nn

from pyro_vmm.runtime.operations import Operations
from pyro_vmm.runtime.program import Program


@pytest.fixture
def texts(monkeypatch):
    """The programs made."""
    made = []
    text = Program.text
    monkeypatch.setattr(Program, "text", lambda *given: made.append(text(*given)) or made[-1])
    return made


def check(step, texts) -> tuple[str, str]:
    """Compare a step that is recorded with the step on four inputs; returns what is done once, and what at each run."""
    x = torch.arange(6.0).view(3, 2) - 2.0
    torch.manual_seed(0)
    recorded, replay = Operations().record(step, (x,), [])
    state = torch.get_rng_state()
    torch.manual_seed(0)
    torch.testing.assert_close(recorded, step(x), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    for i in range(3):
        x += i
        torch.manual_seed(i)
        found = [each.clone() for each in replay(x)]
        torch.manual_seed(i)
        torch.testing.assert_close(tuple(found), step(x), rtol=0, atol=0)
    before, _, program = texts[-1].partition("def replay(x0):")
    return before, program


def test_what_is_made_twice_is_made_once(texts):
    _, program = check(lambda x: (x.exp() + 1.0, x.exp() * 2.0), texts)
    assert program.count("aten_exp") == 1


def test_what_differs_in_a_number_is_made_twice(texts):
    _, program = check(lambda x: (x * 2.0, x * 3.0, x * -0.0, x * 0.0), texts)
    assert program.count("aten_mul") == 4


def test_draws_are_made_each_time(texts):
    _, program = check(lambda x: (torch.rand_like(x), torch.rand_like(x)), texts)
    assert program.count("aten_rand_like") == 2


def argument_changes(x):
    y = x + 1.0
    first = y.exp()
    y.mul_(2.0)
    return first, y.exp()


def view_of_argument_changes(x):
    y = x + 1.0
    first = y.exp()
    y[0].mul_(2.0)
    return first, y.exp()


def first_result_changes(x):
    first = x.exp()
    first.add_(1.0)
    return first, x.exp()


def second_result_changes(x):
    first, second = x.exp(), x.exp()
    second.view(-1)[:2].add_(1.0)
    return first, second


def given_tensor_changes(x):
    first = x.exp()
    x.add_(1.0)
    second = x.exp()
    x.sub_(1.0)
    return first, second


@pytest.mark.parametrize(
    "step",
    [argument_changes, view_of_argument_changes, first_result_changes, second_result_changes, given_tensor_changes],
)
def test_what_changes_is_made_twice(step, texts):
    _, program = check(step, texts)
    assert program.count("aten_exp") == 2


def test_copies_that_never_change_are_no_copies(texts):
    _, program = check(lambda x: (x.exp().pow(1.0) + 1.0, x.repeat(1, 1) * 2.0, (x + 2.0).clone().exp()), texts)
    assert not any(name in program for name in ("aten_pow", "aten_repeat", "aten_clone"))


@pytest.mark.parametrize(
    "step",
    [
        lambda x: ((x + 1.0).pow(2.0), (x + 1.0).repeat(2, 1), (x + 1.0).repeat(1, 1, 1)),
        lambda x: ((x.mT + 1.0).clone(memory_format=torch.contiguous_format).view(-1), (x > 0).pow(1.0)),
    ],
    ids=["other values", "another layout or type"],
)
def test_copies_that_differ_are_copies(step, texts):
    check(step, texts)


def copy_changes(x):
    y = x + 1.0
    other = y.clone()
    other.mul_(2.0)
    return y, other


def source_changes(x):
    y = x + 1.0
    other = y.clone()
    y.mul_(2.0)
    return y, other


@pytest.mark.parametrize("step", [copy_changes, source_changes])
def test_copies_of_what_changes_are_copies(step, texts):
    _, program = check(step, texts)
    assert "aten_clone" in program


def test_a_view_that_shows_the_same_is_not_made(texts):
    _, program = check(lambda x: ((x + 1.0).mT.mT.view(3, 2).expand(3, 2).exp(),), texts)
    assert not any(name in program for name in ("aten_transpose", "aten_view", "aten_expand"))


def test_views_of_given_tensors_are_made_once_and_see_new_values(texts):
    given = torch.arange(6.0).view(3, 2)
    before, program = check(lambda x: (given.mT.exp(), given.mT[0] + x[0, 0]), texts)
    assert before.count("aten_transpose") == 1
    assert "aten_transpose" not in program
    assert "aten_select" in before


def test_what_depends_on_no_tensor_is_made_once(texts):
    before, program = check(lambda x: (torch.eye(2) + x[:2], torch.eye(2) + x[1:]), texts)
    assert before.count("aten_eye") == 1
    assert "aten_eye" not in program


def test_a_constant_that_is_changed_is_made_each_time(texts):
    def step(x):
        total = torch.zeros(2)
        total += x.sum(0)
        return (total,)

    before, program = check(step, texts)
    assert not before
    assert "aten_zeros" in program


def test_an_empty_tensor_that_is_filled_is_made_each_time(texts):
    def step(x):
        noise, other = torch.empty(3), torch.empty(3)
        noise.normal_()
        other.uniform_()
        return noise + x[:, 0], other

    _, program = check(step, texts)
    assert program.count("aten_empty") == 2


def test_each_pass_moves_running_statistics():
    """The schema of batch normalisation does not say that it changes them."""
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    layers = [nn.BatchNorm1d(2) for _ in range(2)]

    def step_of(layer):
        return lambda x: (layer(x).detach() + layer(x).detach(),)

    _, replay = Operations().record(step_of(layers[0]), (x,), [])
    for _ in range(2):
        replay(x)
    for _ in range(3):
        step_of(layers[1])(x)
    torch.testing.assert_close(layers[0].running_mean, layers[1].running_mean, rtol=0, atol=0)
    assert layers[0].running_mean.abs().min() > 0


def test_batch_normalisation_at_rest_is_made_once(texts):
    layer = nn.BatchNorm1d(2).eval().requires_grad_(False)
    _, program = check(lambda x: (layer(x) + 1.0, layer(x) * 2.0), texts)
    assert program.count("aten_native_batch_norm") == 1


def test_an_unused_pass_moves_running_statistics_too():
    layer = nn.BatchNorm1d(2)
    _, replay = Operations().record(lambda x: (layer(x), x + 1.0)[1:], (torch.randn(8, 2),), [])
    before = layer.running_mean.clone()
    replay(torch.randn(8, 2))
    assert not torch.equal(layer.running_mean, before)
