"""What a fit says of its own clusters, and what rows are told apart by."""

import numpy as np
import pytest

from pyro_vmm import VMM
from pyro_vmm.inference.confidence import Confidence, _rise, measure
from pyro_vmm.inference.schedule import judged
from pyro_vmm.inference.settling import MOST_ROWS, sharpened, some_rows
from pyro_vmm.priors import groups
from pyro_vmm.priors.evidence import Encoded
from pyro_vmm.priors.groups import closest
from pyro_vmm.priors.moves import find_components

SURE = {"closest": 0.1, "pair": (0, 1), "hesitating": 0.01, "largest": 0.5, "used": 0.2, "rise": 0.0}


def two_clusters(apart: float, uncertainty: float, n: int = 400) -> tuple[Encoded, np.ndarray]:
    """Means of two clusters of standard deviation 0.5, and covariances of q(z; x) of this standard deviation."""
    random, truth = np.random.default_rng(0), np.arange(n) % 2
    mean = 0.5 * random.normal(size=(n, 3))
    mean[:, 0] += apart * truth
    return Encoded(mean, np.full((n, 3), uncertainty**2)), truth


def test_clusters_are_told_apart_by_where_rows_are_encoded():
    """Two clusters, of which each row's uncertainty is as wide as the gap between them."""
    encoded, truth = two_clusters(4.0, 2.0)
    assert find_components(encoded, truth, 10).max() == 0
    found = find_components(sharpened(encoded), truth, 10)
    assert found.max() == 1 and len(np.unique(found[truth == 0])) == len(np.unique(found[truth == 1])) == 1


def test_a_direction_that_the_encoder_does_not_use_tells_nothing_apart():
    encoded, truth = two_clusters(0.0, 1.0)
    encoded.mean[:, 0] = 1e-3 * (truth + 0.1 * encoded.mean[:, 1])
    assert find_components(sharpened(encoded), truth, 10).max() == 0
    assert find_components(Encoded(encoded.mean, 1e-9 * encoded.covariance), truth, 10).max() == 1


def test_the_two_clusters_least_apart():
    random = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [30, 0], [33.5, 0]])
    labels = np.repeat([0, 1, 2], 300)
    encoded = Encoded(centres[labels] + random.normal(size=(900, 2)), np.full((900, 2), 1e-3))
    ratio, pair = closest(encoded, labels)
    assert pair == (1, 2) and 0.2 < ratio < 0.8
    assert closest(encoded, np.zeros(900, int)) == (0.0, None)
    few = np.where(np.arange(900) == 899, 3, labels)
    assert closest(encoded, few)[1] == (1, 2), "one row is no cluster"


@pytest.mark.parametrize(
    ("doubtful", "text"),
    [
        ({"closest": 0.9}, "clusters 0 and 1 are hardly apart"),
        ({"hesitating": 0.2}, "20% of all lie between clusters"),
        ({"largest": 0.95}, "one cluster holds 95% of all"),
        ({"used": 1.0}, "more n_components"),
        ({"rise": 3.0}, "the ELBO still rose by 3.0 nats"),
    ],
)
def test_doubts(doubtful, text):
    assert Confidence(**SURE).doubts == []
    (doubt,) = Confidence(**{**SURE, **doubtful}).doubts
    assert text in doubt


def test_a_prior_of_one_component_is_no_doubt():
    encoded = Encoded(np.random.default_rng(0).normal(size=(50, 2)), np.full((50, 2), 1e-3))
    one = measure(encoded, np.ones((50, 1)), np.zeros(1, int), np.arange(100.0))
    assert one.doubts == ["the ELBO still rose by 10.0 nats: more epochs may help"]


def test_the_rise_of_the_elbo():
    assert _rise(np.arange(100.0)) == 10.0
    assert _rise(np.ones(1)) == 0.0


def test_a_training_is_judged_by_rows_held_back():
    """The others are learned by heart: their ELBO rises on."""
    assert judged([1.0, 2.0], [5.0, 4.0]).tolist() == [5.0, 4.0]
    assert judged([1.0, 2.0], [np.nan, np.nan]).tolist() == [1.0, 2.0]


def test_a_fit_knows_how_sure_it_is():
    random, truth = np.random.default_rng(0), np.arange(300) % 3
    X = 10 * random.normal(size=(3, 6))[truth] + random.normal(size=(300, 6))
    model = VMM(n_components=8, latent_dim=2, hidden=(32,), learning_rate=5e-3, epochs=60, random_state=0).fit(X)
    found = model.confidence_
    sure = model.predict_proba(X).max(1)
    assert found.hesitating == pytest.approx((sure < 0.9).mean(), abs=0.01)
    assert found.largest == pytest.approx(np.bincount(model.labels_).max() / 300, abs=0.01)
    assert found.used == len(np.unique(model.components_)) / 8
    assert str(found).startswith(f"{found.hesitating:.1%} of all hesitate")


def test_of_many_rows_a_random_part_is_looked_at():
    assert some_rows(10, 0).tolist() == list(range(10))
    rows = some_rows(MOST_ROWS + 5, 3)
    assert len(rows) == MOST_ROWS and (rows[1:] > rows[:-1]).all() and (rows == some_rows(MOST_ROWS + 5, 3)).all()


def test_of_many_clusters_the_nearest_are_compared(monkeypatch):
    """Sixty clusters on a line, two of them close: as with all pairs, of which far fewer are looked at."""
    random, labels = np.random.default_rng(0), np.repeat(np.arange(60), 30)
    centres = np.column_stack([10.0 * np.arange(60), np.zeros(60)])
    centres[41, 0] -= 6.5
    encoded = Encoded(centres[labels] + random.normal(size=(1800, 2)), np.full((1800, 2), 1e-3))
    looked, real = [], groups.dip_between
    monkeypatch.setattr(groups, "dip_between", lambda *given: looked.append(1) or real(*given))
    assert closest(encoded, labels)[1] == (40, 41)
    assert 60 * 59 / 2 > len(looked) <= 60 * groups.NEIGHBOURS


def test_a_latent_space_without_width_is_no_error():
    labels = np.repeat([0, 1, 2], 30)
    flat = np.column_stack([10.0 * labels, np.zeros(90)])
    ratio, pair = closest(Encoded(flat, np.zeros((90, 2))), labels)
    assert ratio == 0 and pair is not None


def test_there_is_no_rise_once_the_best_epoch_has_passed():
    """The last tenth is better than the one before it, and both are behind the best epoch."""
    elbos = np.array([-210.0, -155.0, -146.0, -152.0, -149.0])
    assert _rise(elbos) == 0 and _rise(elbos[:3]) == 9 and _rise(elbos[:4]) == -6
    assert _rise(elbos[:1]) == 0 and _rise(np.empty(0)) == 0
