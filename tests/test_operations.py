"""Steps recorded on a CPU: the numbers of eager steps, what a recording follows, and what can't be recorded."""

import subprocess
import sys
import weakref
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from common import assert_same_fits, build, config, data, every_prior, noisy, planted
from torch import nn

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.inference import Steps
from pyro_vmm.inference.steps import choose_recorder, quiet_pyro
from pyro_vmm.likelihoods import CustomLikelihood
from pyro_vmm.runtime import captured as capturing
from pyro_vmm.runtime import operations
from pyro_vmm.runtime.captured import Captured
from pyro_vmm.runtime.operations import Operations, consists_of_known_code, of_any_size
from pyro_vmm.runtime.program import Program


@pytest.fixture
def at_once(monkeypatch):
    """Record at the second minibatch of a shape."""
    monkeypatch.setattr(Operations.__init__, "__defaults__", (1,))


@pytest.fixture
def replays(monkeypatch):
    """The number of steps that were replayed."""
    counted = []
    replay = operations._Tape.replay

    def counting(tape, *given):
        run = replay(tape, *given)
        return lambda *x: (counted.append(None), run(*x))[1]

    monkeypatch.setattr(operations._Tape, "replay", counting)
    return counted


def plain_function(step, changes=()):
    """A step of one's own on two numbers, and how it is captured: the numbers, the optimiser and the capture."""
    module = nn.Linear(2, 1, bias=False)
    nn.init.ones_(module.weight)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)

    def iteration(x):
        optimizer.zero_grad()
        loss = step(module, x)
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    return module, optimizer, Captured(iteration, module, Operations(1), lambda: [optimizer], module, "warn"), iteration


# The numbers


@pytest.mark.parametrize("settings", [{}, {"expectation": "sampled"}, {"responsibilities": "differentiated"}])
@pytest.mark.parametrize("reuse", [False, True])
@every_prior
def test_forty_steps_agree(prior, reuse, settings, replays):
    if settings and prior not in ("vmm", "gmm"):
        settings = {}
    found = []
    for capture in (False, "auto"):
        steps = Steps(build(prior, noisy, **settings).train(), config(capture=capture, reuse_draws=reuse))
        steps.recorder and setattr(steps.recorder, "patience", 1)
        torch.manual_seed(3)
        with quiet_pyro():
            terms = [[part.clone() for part in steps.iterate(data(48)[i % 3 :][:32])] for i in range(40)]
        assert steps.iterate.obstacle is None
        found.append((terms, dict(steps.vae.state_dict()), steps.optimizer_states()))
    assert len(replays) == 38  # one of them for the proof
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(("likelihood", "reuse"), [("zinb", False), ("nb", True), ("poisson", False)])
def test_a_fit_to_cells_is_that_of_eager_steps(likelihood, reuse, at_once, replays):
    cells, settings = planted(200), {"epochs": 12, "n_components": 5, "batch_size": 64, "reuse_draws": reuse}
    fits = [
        SingleCellVMM("batch", likelihood=likelihood, capture=capture, random_state=0, **settings).fit(cells)
        for capture in (False, "cpu")
    ]
    assert_same_fits(*fits)
    assert len(replays) > 20


def test_a_fit_in_bfloat16_is_that_of_eager_steps(at_once, replays):
    settings = {"epochs": 12, "n_components": 6, "batch_size": 64, "precision": "bf16", "dtype": "float32"}
    x = data(200).numpy()
    fits = [VMM(**settings, capture=capture, random_state=0).fit(x) for capture in (False, "cpu")]
    assert_same_fits(*fits)
    assert len(replays) > 20


def test_a_fit_with_falling_rates_is_that_of_eager_steps(at_once, replays):
    """The learning rate changes at every epoch, and components leave: the first needs no recording anew."""
    x = data(200).numpy()
    fits = [
        VMM(
            epochs=40,
            decay_fraction=0.5,
            n_components=6,
            freeze_after=5,
            batch_size=64,
            capture=capture,
            random_state=0,
        ).fit(x)
        for capture in (False, "cpu")
    ]
    assert_same_fits(*fits)
    assert fits[0].history_["n_trained"].iloc[-1] < 12
    assert len(replays) > 60


def test_a_replay_reads_the_rate_of_the_optimiser(replays):
    module, optimizer, captured, _ = plain_function(lambda module, x: -module(x).sum())
    for _ in range(4):
        captured(torch.ones(3, 2))
    before = module.weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.02
    captured.refresh()
    captured(torch.ones(3, 2))
    # The gradient never changes, so that Adam moves by its rate.
    torch.testing.assert_close(module.weight.detach() - before, torch.full((1, 2), 0.02), rtol=1e-4, atol=0)
    assert len(replays) == 3


def test_a_number_that_python_gives_is_as_it_was():
    """What is computed in place from it must not add up over the replays."""

    def step(module, x):
        total = torch.tensor(1.0)
        total += x.sum()
        return total * module.weight.sum() ** 2

    _, _, captured, _ = plain_function(step)
    losses = [captured(torch.ones(3, 2))[0].clone() for _ in range(2)]
    _, _, _, iteration = plain_function(step)
    eager = [iteration(torch.ones(3, 2))[0] for _ in range(6)]
    losses += [captured(torch.ones(3, 2))[0].clone() for _ in range(4)]
    assert captured.obstacle is None
    torch.testing.assert_close(losses, eager, rtol=0, atol=0)


def test_numbers_that_are_not_finite_are_repeated():
    _, _, captured, _ = plain_function(lambda module, x: (module(x) - float("inf")).clamp(min=-1.0).sum())
    assert [captured(torch.ones(3, 2))[0].item() for _ in range(5)] == [-3.0] * 5
    assert captured.obstacle is None


def test_training_sees_what_a_callback_changes(at_once):
    def anneal(row, vae):
        vae.prior.m_prior = 100.0 / row["epoch"]

    fits = [
        VMM(epochs=8, n_components=4, batch_size=50, patience=None, capture=capture, random_state=0).fit(
            data(200).numpy(), callbacks=[anneal]
        )
        for capture in (False, "cpu")
    ]
    assert_same_fits(*fits)


def test_recordings_and_replays_need_no_more_memory_than_a_step(monkeypatch):
    """Of a chain of tensors, one is alive when the next is made of it; a replay deletes each after its last use."""
    alive, programs = [], []
    text = Program.text
    monkeypatch.setattr(Program, "text", lambda *given: programs.append(text(*given)) or programs[-1])

    def step(module, x):
        made = []
        for _ in range(8):
            x = x + 1.0
            made.append(weakref.ref(x))
            alive.append(sum(each() is not None for each in made))
        return (module.weight.sum() - x.mean()) ** 2

    _, _, captured, _ = plain_function(step)
    for _ in range(2):
        captured(torch.ones(1000, 2))
    assert alive[8:] == alive[:8] == [1] * 8
    lines = [line.strip() for line in programs[0].splitlines()]
    for i, line in enumerate(lines):
        made, _, how = line.partition(" = ")
        if how and made not in lines[-1]:
            assert any(made in later for later in lines[i + 1 :] if later.startswith("del "))


def test_draws_that_are_not_used_are_repeated():
    """The random numbers after them are those of the step."""

    def step(module, x):
        torch.rand(3)
        return (module(x) * torch.rand(3, 1)).sum()

    _, _, captured, _ = plain_function(step)
    _, _, _, iteration = plain_function(step)
    found = []
    for take in (captured, iteration):
        torch.manual_seed(0)
        found.append([take(torch.ones(3, 2))[0].clone() for _ in range(6)])
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert captured.obstacle is None


# What can't be recorded


def counter():
    state = {"n": 0}

    def step(module, x):
        state["n"] += 1
        return module(x).sum() * state["n"]

    return step


def masked(module, x):
    return module(x[x[:, 0] > 0]).mean()


def numbered(module, x):
    return module(x).sum() * float(x.sum())


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (counter(), "gives other numbers"),
        (masked, r"the size of what aten::(nonzero|index.Tensor)\(?.* returns depends on values"),
        (numbered, "aten::_local_scalar_dense takes a number out of a tensor"),
    ],
    ids=["a Python variable", "a mask", "a number"],
)
def test_what_operations_do_not_show_is_refused(step, message):
    x = torch.tensor([[1.0, 2.0], [-1.0, 3.0], [0.5, 1.0]])
    module, _, captured, iteration = plain_function(step)
    with pytest.warns(UserWarning, match=message):
        losses = [captured(x + i)[0].clone() for i in range(5)]
    assert captured.obstacle
    if step in (masked, numbered):
        eager_module, _, _, iteration = plain_function(step)
        torch.testing.assert_close(losses, [iteration(x + i)[0] for i in range(5)], rtol=0, atol=0)
        assert torch.equal(module.weight, eager_module.weight)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, float("nan")], [1.0, float("nan")], True),
        ([float("inf")], [float("inf")], True),
        ([float("nan")], [0.0], False),
        ([float("inf")], [torch.finfo(torch.float32).max], False),
        ([1.0], [1.0 + 2**-23], False),
        ([1.0], [1.0, 1.0], False),
        ([1, 2], [1, 2], True),
    ],
)
def test_a_proof_takes_no_two_numbers_for_one(one, other, expected):
    assert capturing.same(torch.tensor(one), torch.tensor(other)) == expected


def test_sizes_may_differ_where_the_code_promises_to_do_the_same():
    def step(module, x):
        with of_any_size():
            rows = (x[:, 0] > 0).nonzero().squeeze(-1)
        return (module(x).squeeze(-1) * x[:, 1].index_copy(0, rows, 2.0 * x[rows, 0].exp())).sum()

    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    _, _, captured, _ = plain_function(step)
    _, _, _, iteration = plain_function(step)
    for i in range(8):
        torch.testing.assert_close(captured(x + 0.1 * i)[0], iteration(x + 0.1 * i)[0], rtol=0, atol=0)
    assert captured.obstacle is None


def test_an_optimiser_that_is_not_fused_is_refused():
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def iteration(x):
        optimizer.zero_grad()
        loss = module(x).sum()
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    captured = Captured(iteration, module, Operations(1), lambda: [optimizer], module, "raise")
    captured(torch.ones(3, 2))
    with pytest.raises(RuntimeError, match="can't be recorded: an optimiser is not a fused Adam"):
        captured(torch.ones(3, 2))


# Whose code is recorded


class Own(nn.Linear):
    pass


def with_hook():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


def with_attribute(value):
    layer = nn.Linear(2, 2)
    layer.own = value
    return layer


def test_models_of_the_packages_code_are_known():
    vae = VMM(epochs=1, n_components=3).fit(data(60).numpy()).vae_
    cells = SingleCellVMM("batch", epochs=1, n_components=3).fit(planted()).vae_
    for model in (vae, cells):
        assert consists_of_known_code(model)
        assert isinstance(choose_recorder(model, config()), Operations)
        assert choose_recorder(model, config(capture=False)) is None


@pytest.mark.parametrize(
    "network",
    [
        Own(2, 2),
        with_hook(),
        with_attribute(lambda x: x),
        with_attribute({"f": [partial(lambda x: x)]}),
        with_attribute(Own(2, 2).forward),
        with_attribute(torch.no_grad()(lambda x: x)),
        CustomLikelihood((2,), lambda h: dist.Laplace(h, 1.0)),
    ],
    ids=["a class", "a hook", "a function", "a function inside", "a method", "a wrapped function", "a likelihood"],
)
def test_other_code_is_not_known(network):
    assert not consists_of_known_code(nn.Sequential(nn.ReLU(), network))
    vae = build()
    vae.extra = network
    assert choose_recorder(vae, config()) is None
    assert isinstance(choose_recorder(vae, config(capture="auto")), Operations)


def test_layers_of_torch_are_known():
    assert consists_of_known_code(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.1), nn.GELU()))


def test_recording_does_not_load_torchs_compiler():
    program = """
import sys, torch
from torch import nn
from pyro_vmm.runtime.operations import Operations
module = nn.Linear(2, 1)
_, replay = Operations().record(lambda x: (module(x).detach(),), (torch.ones(3, 2),), [])
assert torch.equal(replay(torch.ones(3, 2))[0], module(torch.ones(3, 2)))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
