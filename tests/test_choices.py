"""What "auto" stands for, from a hundred rows to a million."""

import math

import numpy as np
import pandas as pd
import pytest

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.estimators import choices
from pyro_vmm.inference import TrainingConfig
from pyro_vmm.rivals import VaDE

AUTO = {"learning_rate": "auto", "batch_size": "auto", "epochs": "auto", "patience": "auto"}


@pytest.mark.parametrize("rows", [100, 178, 1797, 10_000, 70_000, 1_000_000])
@pytest.mark.parametrize("hidden", [(64,), (128, 128), (500, 500, 2000)])
def test_a_fit_goes_a_distance_whatever_the_number_of_rows(rows, hidden):
    chosen = choices.choose_training(AUTO, rows, hidden, choices.choose_epochs)
    steps = chosen["epochs"] * math.ceil(rows / chosen["batch_size"])
    distance = steps * chosen["learning_rate"]
    assert distance >= choices.DISTANCE
    one_more = (chosen["epochs"] - 1) * math.ceil(rows / chosen["batch_size"]) * chosen["learning_rate"]
    assert one_more < choices.DISTANCE or chosen["epochs"] == choices.LEAST_EPOCHS
    assert 32 <= chosen["batch_size"] <= 256 and 0 < chosen["patience"] <= chosen["epochs"]


def test_wide_layers_take_small_steps():
    assert choices.choose_learning_rate((128, 128)) == choices.choose_learning_rate((8,)) == 2e-3
    assert choices.choose_learning_rate((500, 500, 2000)) == pytest.approx(2e-3 * math.sqrt(128 / 2000))
    assert choices.choose_hidden("auto", 255) == (128, 128) and choices.choose_hidden("auto", 256) == (500, 500, 2000)
    assert choices.choose_hidden([3], 256) == [3]


def test_what_is_given_stays():
    given = {"learning_rate": 0.1, "batch_size": 7, "epochs": 3, "patience": None}
    assert choices.choose_training(given, 500, (8,), choices.choose_epochs) == given
    chosen = choices.choose_training(
        {**AUTO, "learning_rate": 0.01, "batch_size": 10}, 100, (8,), choices.choose_epochs
    )
    assert chosen["epochs"] == 50 and chosen["patience"] == 17


@pytest.mark.parametrize(("cells", "epochs"), [(500, 400), (20_000, 400), (100_000, 80), (2_000_000, 10)])
def test_cells_are_trained_as_long_as_scvi_does(cells, epochs):
    assert choices.choose_cell_epochs(cells, 128, 1e-3) == epochs


def test_an_estimator_says_what_it_chose(tmp_path):
    X = np.random.RandomState(0).normal(size=(120, 3))
    model = VMM(n_components=3, hidden=(4,), epochs=2, random_state=0).fit(X)
    assert model.chosen_ == {
        "batch_size": 32,
        "learning_rate": 2e-3,
        "patience": 1,
        "scaling": "range",
        "device": str(model._own_device()),
    }
    assert isinstance(model.training_, TrainingConfig) and model.training_.epochs == 2
    assert model.get_params()["learning_rate"] == "auto"
    model.save(tmp_path / "model.pt")
    again = VMM.load(tmp_path / "model.pt")
    assert again.chosen_ == model.chosen_ and again.training_ == model.training_


def test_values_that_are_neither_numbers_nor_auto():
    for name in ("epochs", "batch_size", "learning_rate", "patience"):
        with pytest.raises(ValueError, match=name):
            VMM(**{name: "automatic"}).fit(np.zeros((5, 2)))
    for estimator in (SingleCellVMM, VaDE):
        with pytest.raises(ValueError, match="batch_size"):
            estimator(batch_size="auto")._check_parameters()


def of_units(*columns: tuple[float, float]) -> np.ndarray:
    """Columns of values between these ends."""
    low, high = np.array(columns, float).T
    return low + (high - low) * np.linspace(0.0, 1.0, 40)[:, None]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([(0.1, 0.9), (300.0, 1700.0)], True),
        ([(300.0, 1700.0), (5.0, 5.0), (0.1, 0.9)], True),  # in any order, beside a constant column
        ([(-1700.0, -300.0), (0.1, 0.9)], True),
        ([(0.0, 2.0), (300.0, 1700.0), (-5.0, 500.0)], True),
        ([(0.0, 0.1), (0.0, 16.0), (0.0, 12.0)], False),  # pixels
        ([(-40.0, 50.0), (-0.1, 0.2)], False),  # principal components
        ([(0.0, 1.0), (5.0, 7.0), (-9.0, -8.0)], False),  # one unit, other places
        ([(0.0, 1.0), (100.0, 119.0)], False),  # nineteen times as much
        ([(0.0, 1.0), (100.0, 121.0)], True),
        ([(3.0, 3.0), (900.0, 900.0)], False),
        ([(0.0, 1.0)], False),
    ],
)
def test_columns_in_units_of_their_own_are_seen(columns, expected):
    assert choices.has_units(of_units(*columns)) == expected


def test_the_fast_search_finds_what_all_pairs_show():
    random = np.random.default_rng(0)
    found = []
    for _ in range(300):
        low = random.normal(0, 10, 4)
        X = of_units(*zip(low, low + random.gamma(0.5, 40.0, 4), strict=True))
        span, pairs = X.max(0) - X.min(0), np.ndindex(4, 4)
        apart = [X[:, i].max() < X[:, j].min() or X[:, i].min() > X[:, j].max() for i, j in pairs]
        wide = [0 < span[i] * choices.RATIO_OF_SPANS < span[j] for i, j in np.ndindex(4, 4)]
        found.append(any(np.logical_and(apart, wide)))
        assert choices.has_units(X) == found[-1]
    assert 50 < sum(found) < 250


def test_an_array_in_units_is_scaled_as_a_table_and_images_are_not():
    X = of_units((0.1, 0.9), (300.0, 1700.0)) + np.random.default_rng(0).normal(0, 0.01, (40, 2))
    fit = dict(epochs=1, n_components=3, settle=False, random_state=0)
    array, table = VMM(**fit).fit(X), VMM(**fit).fit(pd.DataFrame(X))
    assert array.scaling_ == table.scaling_ == "standard"
    assert np.array_equal(array.scale_, table.scale_) and np.array_equal(array.labels_, table.labels_)
    assert VMM(**fit).fit(X.reshape(40, 2, 1)).scaling_ == "range"
    assert VMM(scaling="range", **fit).fit(X).scaling_ == "range"
