"""MAP steps alone, after training: who they touch, and where they lead."""

import math

import pytest
import torch
from common import D, build, config, data, noisy, state

from pyro_vmm.inference import Steps, Trainer, TrainingDiverged


def trained(prior: str = "vmm", **settings) -> Trainer:
    trainer = Trainer(build(prior, noisy, **settings), config(epochs=3))
    trainer.fit(data(), progress=False)
    return trainer


@pytest.mark.parametrize("prior", ["gmm", "vmm"])
def test_only_the_prior_moves(prior):
    trainer = trained(prior)
    before, optimizer = state(trainer.vae), trainer.steps.prior_optimizer
    trainer.consolidate(data(), 5)
    for name, value in trainer.vae.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("prior."), name
    assert trainer.steps.prior_optimizer is optimizer


@pytest.mark.parametrize("prior", ["standard_normal", "vamp"])
def test_nothing_moves_where_the_map_step_has_nothing_to_train(prior):
    trainer = trained(prior)
    before = state(trainer.vae)
    trainer.consolidate(data(), 5)
    assert all(torch.equal(value, before[name]) for name, value in trainer.vae.state_dict().items())


def test_no_steps_change_nothing():
    trainer = trained()
    before = state(trainer.vae)
    trainer.consolidate(data(), 0)
    assert all(torch.equal(value, before[name]) for name, value in trainer.vae.state_dict().items())


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_number_of_steps(steps, monkeypatch):
    trainer, taken = trained(), []

    def map_step(self, x, balanced):
        taken.append((len(x), balanced))
        return torch.zeros(())

    monkeypatch.setattr(Steps, "map_step", map_step)
    trainer.consolidate(data(), steps)
    assert len(taken) == steps
    assert not any(balanced for _, balanced in taken)
    assert sum(rows for rows, _ in taken[:4]) == min(50, 16 * steps), "an epoch has each row once"


@pytest.mark.parametrize("rate", [1e-3, 0.1])
def test_the_learning_rate_is_its_own(rate):
    """By Adam's first step, which is the rate times the sign of the gradient; the rate of training had fallen."""
    trainer = trained()
    trainer.config = config(epochs=3, decay_fraction=1.0, prior_learning_rate=7.0)
    before = trainer.vae.prior.pi_logits.clone()
    trainer.consolidate(data(), 1, rate)
    moved = (trainer.vae.prior.pi_logits - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-2, atol=0)


def test_same_numbers_whatever_ran_before_and_the_callers_are_untouched():
    outcomes = []
    for burn in (0, 3):
        trainer = trained()
        torch.manual_seed(5)
        torch.randn(burn)
        before = torch.get_rng_state()
        trainer.consolidate(data(), 6)
        assert torch.equal(torch.get_rng_state(), before)
        outcomes.append(state(trainer.vae))
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


def test_training_goes_on_as_if_it_had_not_been():
    apart, through = trained(), trained()
    apart.consolidate(data(), 5)
    for trainer in (apart, through):
        trainer.config = config(epochs=5)
        trainer.fit(data(), progress=False)
    left, right = state(apart.vae), state(through.vae)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_components_without_data_lose_their_weight():
    trainer = trained()
    prior = trainer.vae.prior
    before = prior.log_pi.exp().min().item()
    trainer.consolidate(data(), 150, 3e-2)
    assert prior.log_pi.exp().min().item() < before / 2
    assert prior.log_pi.shape == (3,) and prior.latent_dim == D


def test_divergence_restores_what_was_there():
    trainer = trained()
    before = state(trainer.vae)
    with pytest.raises(TrainingDiverged, match="consolidation"):
        trainer.consolidate(data() * math.nan, 2)
    assert all(torch.equal(value, before[name]) for name, value in trainer.vae.state_dict().items())
