"""The benchmarks' own code: their simulations hold what they say, and one case of them passes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest


def load(name: str):
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("n", "dim"), [(3, 2), (10, 5), (20, 10)])
def test_simulated_centres_are_as_far_apart_as_stated(n, dim):
    points = load("synthetic").centres(n, dim, 7.0, np.random.RandomState(0))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)[~np.eye(n, dtype=bool)]
    assert distances.min() == pytest.approx(7.0)
    assert np.median(distances) < 35, "one tight pair should not stretch the others"


def test_simulation_depends_on_the_seed_alone():
    synthetic = load("synthetic")
    X, y = synthetic.simulate(50, 3, 2, 10, 10.0, seed=4)
    again, _ = synthetic.simulate(50, 3, 2, 10, 10.0, seed=4)
    np.testing.assert_array_equal(X, again)
    assert X.shape == (50, 10) and set(y) <= {0, 1, 2}


@pytest.mark.slow
def test_finds_the_number_of_clusters():
    synthetic = load("synthetic")
    assert synthetic.measure(synthetic.CASES[0], 0, synthetic.SETTINGS)["passed"]
