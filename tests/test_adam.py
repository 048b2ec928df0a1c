"""Our Adam is torch's, and does not load torch's compiler."""

import copy
import inspect
import runpy

import pytest
import torch

from pyro_vmm.inference import adam

WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad", "step")


def train(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        factors = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in parameters]
        sum((factor * each**2).sum() for factor, each in zip(factors, parameters, strict=True)).backward()
        optimizer.step()


def start(kind: type, **settings) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator).requires_grad_() for shape in [(3, 2), (4,)]]
    optimizer = kind(parameters[:1], lr=0.1, eps=1e-7, **settings)
    optimizer.add_param_group({"params": parameters[1:], "lr": 0.01})
    return optimizer, parameters


def check_same(ours: type, **settings) -> None:
    """Train with ours and torch's, each going on from what the other remembers."""
    (one, x), (other, y) = start(ours, **settings), start(torch.optim.Adam, **settings)
    for round_ in range(3):
        train(one, x, 4, round_)
        train(other, y, 4, round_)
        assert all(torch.equal(a, b) for a, b in zip(x, y, strict=True))
        states = [copy.deepcopy(each.state_dict()) for each in (one, other)]
        assert states[0]["param_groups"] == states[1]["param_groups"]
        one.load_state_dict(states[1])
        other.load_state_dict(states[0])
    assert not torch.equal(x[0], start(ours)[1][0])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "amsgrad": True}], ids=["plain", "decayed"])
def test_it_is_that_of_torch_bit_for_bit(fused, settings):
    check_same(adam.Adam, fused=fused, **settings)


def test_a_torch_without_wrappers_gives_the_same(monkeypatch):
    """The class made anew where there is nothing to unwrap."""
    for name in WRAPPED:
        bare = inspect.unwrap(getattr(torch.optim.Adam, name))
        monkeypatch.setattr(torch.optim.Adam, name, torch.no_grad()(bare) if name == "step" else bare)
    check_same(runpy.run_path(adam.__file__)["Adam"], fused=True)


def test_a_step_records_no_gradients_and_calls_hooks():
    optimizer, parameters = start(adam.Adam)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(torch.is_grad_enabled()))
    train(optimizer, parameters, 2, 0)
    assert called == [True, True]
    assert all(each.grad_fn is None and each.requires_grad for each in parameters)
