"""When the rates begin to fall, and when training ends: the ELBO levels off."""

import math

import numpy as np
import pytest
from common import assert_same, build, config, data

from pyro_vmm.inference import Trainer, TrainingConfig, schedule
from pyro_vmm.inference.schedule import levelled_off, shortened, window


def epoch_by_epoch(elbos, n, nats) -> int | None:
    for epoch in range(2 * n, len(elbos) + 1):
        if np.mean(elbos[epoch - n : epoch]) - np.mean(elbos[epoch - 2 * n : epoch - n]) < nats:
            return epoch
    return None


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("nats", [0.1, 1.0, 5.0])
def test_it_levels_off_where_the_means_gain_too_little(n, nats):
    elbos = -100 * np.exp(-np.arange(60) / 8) + np.random.RandomState(0).randn(60) / 4
    for length in (0, n, 2 * n, 40, 60):
        assert levelled_off(elbos[:length], n, nats) == epoch_by_epoch(elbos[:length], n, nats)


def test_of_a_straight_line_the_gain_is_its_slope():
    line = 0.3 * np.arange(30)
    assert levelled_off(line, 5, 1.4) is None and levelled_off(line, 5, 1.6) == 10


@pytest.mark.parametrize(("rows", "epochs"), [(100, 200), (2_520, 10), (9_000, 3), (90_000, 3)])
def test_the_gain_is_that_of_200_steps_or_of_three_epochs(rows, epochs):
    assert window(rows, 128) == epochs


def test_half_as_many_epochs_follow_where_a_third_is_to_fall():
    elbos = [0.0, 10.0, 20.0, 20.0, 20.0, 20.0, 20.0]
    settings = TrainingConfig(epochs=100, batch_size=10, plateau=1.0, decay_fraction=1 / 3)
    assert window(1_000, 10) == 3
    assert shortened(settings, elbos[:6], 1_000) is settings  # the means are 10 and 20
    assert shortened(settings, [*elbos, 20.0], 1_000).epochs == 12  # 8 and its half
    assert shortened(settings, [*elbos, 20.0, 30.0, 40.0], 1_000).epochs == 12  # what rises later does not count
    assert shortened(TrainingConfig(epochs=100, batch_size=10), [*elbos, 20.0], 1_000).epochs == 100
    falling = TrainingConfig(epochs=100, batch_size=10, plateau=1.0, decay_fraction=1.0)
    assert shortened(falling, [*elbos, 20.0], 1_000) is falling
    few = TrainingConfig(epochs=9, batch_size=10, plateau=1.0, decay_fraction=1 / 3)
    assert shortened(few, [*elbos, 20.0], 1_000).epochs == 9


def level(epochs: int, trainer: Trainer, monkeypatch) -> None:
    """Let the ELBO of the validation rows rise for so many epochs."""
    monkeypatch.setattr(trainer, "evaluate", lambda x: 10.0 * min(len(trainer.history), epochs))


SETTINGS = {"epochs": 50, "plateau": 1.0, "decay_fraction": 0.5}


@pytest.fixture
def three_epochs(monkeypatch):
    """Take the gain over three epochs, of few rows too."""
    monkeypatch.setattr(schedule, "STEPS", 1)


def test_the_rates_fall_and_training_ends(monkeypatch, three_epochs):
    trainer, rates = Trainer(build(), config(**SETTINGS)), []
    level(2, trainer, monkeypatch)
    trainer.fit(
        data(32),
        data(10),
        callbacks=[lambda row, vae: rates.append(trainer.steps.network_optimizer.param_groups[0]["lr"])],
        progress=False,
    )
    assert [row["val_elbo"] for row in trainer.history] == [0.0, 10.0, *[20.0] * 14]
    # After eight epochs the means of the last three and of the three before are both 20; after seven, 20 and 50 / 3.
    fall = [(1 + math.cos(math.pi * t / 9)) / 2 for t in range(1, 9)]
    np.testing.assert_allclose(rates, trainer.config.learning_rate * np.array([1] * 8 + fall))
    assert trainer.finished() and trainer.schedule.epochs == 16 and trainer.config.epochs == 50


@pytest.mark.parametrize("stop", [5, 10])
def test_a_break_before_or_in_the_fall_changes_nothing(stop, monkeypatch, three_epochs):
    states, ended = [], []
    for breaks in (False, True):
        trainer = Trainer(build(), config(**SETTINGS))
        level(2, trainer, monkeypatch)
        callbacks = [lambda row, vae, breaks=breaks: breaks and row["epoch"] == stop]
        trainer.fit(data(32), data(10), callbacks=callbacks, checkpoint=states.append, progress=False)
        if breaks:
            resumed = Trainer(build(), config(**SETTINGS))
            level(2, resumed, monkeypatch)
            resumed.load_state_dict(states[-1])
            resumed.fit(data(32), data(10), progress=False)
            trainer = resumed
        ended.append(trainer.state_dict())
    assert_same(*ended)


def test_without_validation_rows_the_training_elbo_counts(three_epochs):
    trainer = Trainer(build(), config(**{**SETTINGS, "plateau": 1e6}))
    trainer.fit(data(32), progress=False)
    assert len(trainer.history) == 12  # six epochs, and as many again


def test_more_epochs_do_not_train_on_what_has_ended(three_epochs):
    trainer = Trainer(build(), config(**{**SETTINGS, "plateau": 1e6}))
    trainer.fit(data(32), progress=False)
    more = Trainer(build(), config(**{**SETTINGS, "plateau": 1e6, "epochs": 80}))
    more.load_state_dict(trainer.state_dict())
    assert len(more.fit(data(32), progress=False)) == 12
    on = Trainer(build(), config(**{**SETTINGS, "plateau": None, "epochs": 14}))
    on.load_state_dict(trainer.state_dict())
    assert len(on.fit(data(32), progress=False)) == 14


@pytest.mark.parametrize("nats", [0, -1.0, float("nan"), "much"])
def test_no_number_of_nats(nats):
    with pytest.raises(ValueError, match="plateau="):
        TrainingConfig(plateau=nats)
