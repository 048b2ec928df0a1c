"""Changed copies of rows: how images are changed, what the model makes of a pair, and that fits with them hold."""

import functools

import numpy as np
import pytest
import torch
from common import G, K, build, config, data
from pyro.infer import TraceEnum_ELBO
from sklearn.datasets import load_digits
from torch.distributions import Independent, MultivariateNormal, Normal

from pyro_vmm import VMM
from pyro_vmm.data import AUGMENTATIONS, RandomAffine
from pyro_vmm.data.augmentations import as_augmentation
from pyro_vmm.inference import Steps, Trainer
from pyro_vmm.models.elbo import Elbo
from pyro_vmm.runtime.ranks import Ranks

STILL = {"degrees": 0.0, "shear": 0.0, "scale": 0.0, "shift": 0.0}
SIZE, AT = 64, 16.0  # of an image, and where its blob is, right of the middle


def blob(n: int) -> torch.Tensor:
    """The same image n times, (n, SIZE, SIZE): a round blob, ``AT`` pixels right of the middle."""
    along = torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2
    image = torch.exp(-0.5 * (along[:, None] ** 2 + (along[None] - AT) ** 2) / 9)
    return image.expand(n, SIZE, SIZE)


def places(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The centroids of images (n, SIZE, SIZE) right of and below the middle, in pixels."""
    along = torch.arange(SIZE, dtype=images.dtype) - (SIZE - 1) / 2
    mass = images.sum((1, 2))
    return (images.sum(1) @ along / mass).numpy(), (images.sum(2) @ along / mass).numpy()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return load_digits().images[:300]


# Images


def test_without_any_change_an_image_stays():
    images = torch.rand(3, 9, 6, dtype=torch.float64)
    torch.testing.assert_close(RandomAffine(**STILL)(images), images)
    several = torch.rand(3, 2, 9, 6)
    torch.testing.assert_close(RandomAffine(**STILL)(several), several)


def test_a_turned_blob_keeps_its_distance():
    right, below = places(RandomAffine(**{**STILL, "degrees": 30.0})(blob(400)))
    np.testing.assert_allclose(np.hypot(right, below), AT, atol=0.1)
    angles = np.rad2deg(np.arctan2(below, right))
    assert 28 < angles.max() <= 30.1 and -30.1 <= angles.min() < -28 and abs(angles.mean()) < 3


@pytest.mark.parametrize("shape", [(64, 128), (128, 64)])
def test_what_is_in_an_oblong_image_is_turned_and_sheared_as_in_a_square(shape):
    """Beyond a blob there is nothing, so that what surrounds it does not matter."""
    square = torch.zeros(50, 128, 128, dtype=torch.float64)
    square[:, 32:96, 32:96] = blob(50)
    rows, columns = ((128 - side) // 2 for side in shape)
    for changes in ({"degrees": 20.0}, {"shear": 20.0}, {"degrees": 20.0, "shear": 10.0, "scale": 0.2, "flip": True}):
        change = RandomAffine(**{**STILL, **changes})
        torch.manual_seed(0)
        expected = change(square)[:, rows : 128 - rows, columns : 128 - columns]
        torch.manual_seed(0)
        found = change(square[:, rows : 128 - rows, columns : 128 - columns])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_moved_blob_moves_by_at_most_a_share_of_the_side():
    right, below = places(RandomAffine(**{**STILL, "shift": 0.1})(blob(400)))
    for moved in (right - AT, below):
        assert 0.097 * SIZE < moved.max() <= 0.1001 * SIZE and -0.1001 * SIZE <= moved.min() < -0.097 * SIZE


def test_a_stretched_blob_stays_in_its_direction():
    right, below = places(RandomAffine(**{**STILL, "scale": 0.2})(blob(400)))
    np.testing.assert_allclose(below, 0, atol=1e-6)
    ratios = AT / right  # the map goes from the new places to the old ones
    assert 1.19 < ratios.max() <= 1.201 and 0.799 <= ratios.min() < 0.81


def test_a_sheared_blob_moves_by_its_height():
    high = blob(400).mT  # below the middle
    right, below = places(RandomAffine(**{**STILL, "shear": 20.0})(high))
    np.testing.assert_allclose(below, AT, atol=1e-6)
    most = AT * np.tan(np.deg2rad(20))
    assert 0.98 * most < right.max() <= 1.001 * most and -1.001 * most <= right.min() < -0.98 * most


def test_half_of_the_images_are_mirrored():
    right, below = places(RandomAffine(**STILL, flip=True)(blob(400)))
    np.testing.assert_allclose(np.abs(right), AT, atol=1e-6)
    assert 0.42 < (right < 0).mean() < 0.58
    np.testing.assert_allclose(below, 0, atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("degrees", 90), ("shear", -1), ("scale", 1.0), ("shift", "far")])
def test_changes_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r} should be at least 0 and below"):
        RandomAffine(**{name: value})


# The model of a pair


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return data(20).double(), data(20).double() + 0.3 * torch.randn(20, G).double()


@pytest.mark.parametrize("prior", ["gmm", "vmm", "standard_normal"])
def test_elbo_of_a_pair_is_that_by_hand(prior):
    """One component makes both: log p(z, z') = log sum_c pi_c N(z; c) N(z'; c), from equation (4)."""
    vae, (x, changed) = build(prior).double(), pair()
    p_z, elbo = vae.trained_prior(), Elbo()
    torch.manual_seed(1)
    loss = elbo.differentiable_loss(vae.model, vae.guide, x, p_z, changed=changed)
    torch.manual_seed(1)
    terms, joint = torch.zeros(20).double(), p_z.log_weights.expand(20, -1)
    likelihood = torch.zeros(())
    for rows in (x, changed):
        q = vae.encoder(rows)
        z = q.rsample()
        log_p_x = vae.likelihood(vae.decoder(z)).log_prob(rows)
        likelihood = likelihood + log_p_x.sum()
        terms = terms + log_p_x - q.log_prob(z)
        covariances = torch.linalg.inv(p_z.whitener @ p_z.whitener.mT)
        joint = joint + MultivariateNormal(p_z.loc, covariances).log_prob(z.unsqueeze(1))
    torch.testing.assert_close(loss, -(terms + joint.logsumexp(-1)).sum())
    torch.testing.assert_close(elbo.log_likelihood, likelihood.detach())


def test_elbo_of_a_pair_is_pyros():
    vae, (x, changed) = build("gmm").double(), pair()
    p_z = vae.trained_prior()
    losses = []
    for elbo in (Elbo(), TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)):
        torch.manual_seed(1)
        losses.append(elbo.differentiable_loss(vae.model, vae.guide, x, p_z, changed=changed))
    torch.testing.assert_close(*losses)


def test_a_pair_counts_as_two_rows():
    """In the means that a step reports, and in the gradient."""
    vae, (x, changed) = build("gmm").double(), pair()
    torch.manual_seed(1)
    elbo = Elbo()
    loss = elbo.differentiable_loss(vae.model, vae.guide, x, vae.trained_prior(), changed=changed) / 40
    (expected,) = torch.autograd.grad(loss, [next(vae.decoder.parameters())])
    steps = Steps(vae, config(), pairs=True)
    torch.manual_seed(1)
    reported, log_likelihood, _ = steps.svi_step(x, changed)
    torch.testing.assert_close(reported, -loss.detach())
    torch.testing.assert_close(log_likelihood, elbo.log_likelihood / 40)
    torch.testing.assert_close(next(vae.decoder.parameters()).grad, expected)
    terms, responsibilities = steps.iteration(torch.cat([x, changed]))
    assert terms.shape == (3,) and responsibilities.shape == (20, K)


# Training


def jitter(rows: torch.Tensor) -> torch.Tensor:
    return Independent(Normal(rows, 0.1), rows.dim() - 1).sample()


def test_a_step_gets_rows_and_then_their_copies(monkeypatch):
    trainer, seen = Trainer(build(), config(epochs=1, capture=False), lambda rows: rows + 100), []
    step = trainer.steps.iterate.run
    monkeypatch.setattr(trainer.steps.iterate, "run", lambda x: seen.append(x.clone()) or step(x))
    trainer.train_epoch(data(40), lambda n: None)
    assert [len(x) for x in seen] == [32, 32, 16]  # twice 16, 16 and 8 rows
    for x in seen:
        rows, copies = x.chunk(2)
        torch.testing.assert_close(copies, rows + 100)


def test_a_recorded_fit_with_copies_is_that_of_steps(digits):
    fits = [
        VMM(12, 3, hidden=(16,), epochs=25, augment="affine", random_state=0, capture=capture).fit(digits)
        for capture in (False, "cpu")
    ]
    columns = ["elbo", "log_likelihood", "val_elbo"]
    np.testing.assert_array_equal(fits[0].history_[columns], fits[1].history_[columns])
    assert not np.array_equal(
        fits[0].history_["elbo"], VMM(12, 3, hidden=(16,), epochs=25, random_state=0).fit(digits).history_["elbo"]
    )


def test_a_resumed_fit_with_copies_is_bit_identical(digits, tmp_path):
    settings = {"n_components": 12, "latent_dim": 3, "hidden": (16,), "random_state": 0, "decay_fraction": 0.0}
    settings |= {"augment": RandomAffine(degrees=5.0), "patience": None, "settle": False}
    whole = VMM(**settings, epochs=4).fit(digits)
    VMM(**settings, epochs=2).fit(digits, checkpoint=tmp_path / "c.pt")
    resumed = VMM(**settings, epochs=4).fit(digits, resume=tmp_path / "c.pt")
    np.testing.assert_array_equal(whole.history_["elbo"], resumed.history_["elbo"])
    np.testing.assert_array_equal(whole.transform(digits), resumed.transform(digits))
    with pytest.raises(ValueError, match="augment"):
        VMM(**{**settings, "augment": RandomAffine(degrees=6.0)}, epochs=4).fit(digits, resume=tmp_path / "c.pt")


def test_a_file_keeps_a_name_and_no_callable(digits, tmp_path):
    settings = {"n_components": 12, "latent_dim": 3, "hidden": (16,), "random_state": 0, "epochs": 2}
    for given, kept in (("affine", "affine"), (RandomAffine(), None), (jitter, None)):
        model = VMM(**settings, augment=given).fit(digits)
        model.save(tmp_path / "model.pt")
        loaded = VMM.load(tmp_path / "model.pt")
        assert loaded.augment == kept
        np.testing.assert_array_equal(loaded.predict(digits), model.labels_)


def test_rows_of_any_kind_may_be_changed(digits):
    flat = digits.reshape(len(digits), -1)
    assert VMM(12, 3, hidden=(16,), epochs=2, augment=jitter, random_state=0).fit(flat).n_iter_ == 2


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ("afine", r"augment='afine' should be one of \('affine',\), a callable or None"),
        (3, "augment=3 should be"),
        (RandomAffine, "augment=<class .* should be"),
        (lambda rows: rows[:1], r"makes shape \(1, 8, 8\) of rows of shape \(2, 8, 8\)"),
        (lambda rows: rows.numpy(), "makes an object of ndarray"),
        (lambda rows: rows.nonsense, "can't change rows of X: .*nonsense"),
        (functools.partial(torch.mul, other=torch.nan), "makes values that are not finite"),
    ],
)
def test_what_changes_no_rows_is_refused_before_training(digits, augment, expected):
    with pytest.raises(ValueError, match=expected):
        VMM(12, 3, hidden=(16,), epochs=1, augment=augment).fit(digits)


def test_rows_that_are_no_images_are_not_turned(digits):
    with pytest.raises(ValueError, match=r"RandomAffine is for images, .* the rows of X have shape \(64,\)"):
        VMM(12, 3, hidden=(16,), epochs=1, augment="affine").fit(digits.reshape(len(digits), -1))


def test_copies_without_a_density_are_refused(digits):
    counts = digits.round()
    with pytest.raises(ValueError, match=r"poisson likelihood expects .*; x is a row changed by augment='affine'"):
        VMM(12, 3, hidden=(16,), epochs=1, augment="affine", likelihood="poisson").fit(counts)


def test_several_processes_have_no_copies(monkeypatch):
    several = Ranks()
    several.size = 2
    monkeypatch.setattr(Ranks, "present", classmethod(lambda cls: several))
    with pytest.raises(ValueError, match="augment is for training in one process"):
        Trainer(build(), config(), jitter)


def test_names_of_other_packages_count(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS.data, "jitter", jitter)
    assert as_augmentation("jitter") is jitter
    assert VMM(12, 3, hidden=(16,), epochs=1, augment="jitter", random_state=0).fit(data(40).numpy()).n_iter_ == 1
