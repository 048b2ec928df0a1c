"""The two steps and who they touch, reproducibility, interruptions, early stopping, divergence and files."""

import copy
import errno
import itertools
import math
import random
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from common import K, assert_same, build, changed, config, data, every_prior, noisy, plain, state

from pyro_vmm.inference import Trainer, TrainingConfig, TrainingDiverged
from pyro_vmm.models.elbo import Elbo
from pyro_vmm.priors.pseudo_inputs import encoded_once
from pyro_vmm.runtime import files

# The two steps


@every_prior
@pytest.mark.parametrize("networks", [plain, noisy])
@pytest.mark.parametrize("expectation", ["analytic", "sampled"])
def test_each_step_leaves_the_others_parameters_bit_identical(prior, networks, expectation):
    vae = build(prior, networks, **({"expectation": expectation} if prior in ("gmm", "vmm") else {}))
    trainer, x = Trainer(vae, config()), data()
    of_prior = {name for name in vae.state_dict() if name.startswith("prior.")}
    for _ in range(2):
        before = state(vae)
        trainer.steps.svi_step(x)
        moved = changed(before, vae)
        if prior == "vamp":
            assert of_prior == {"prior.pseudo_inputs.u"} and of_prior < moved
        else:
            assert not moved & of_prior
        assert {name for name, _ in vae.named_parameters()} - of_prior <= moved
        if not trainer.steps.prior_optimizer:
            continue
        before = state(vae)
        trainer.steps.map_step(x)
        assert changed(before, vae) == of_prior


@pytest.mark.parametrize("prior", ["gmm", "vmm"])
def test_map_step_is_adam_on_the_gradient_at_the_updated_encoders_draw(prior):
    """From z ~ q(z; x) without gradient, one Adam step: the first is lr * sign of the gradient, up to eps."""
    vae, x = build(prior), data(16)
    trainer = Trainer(vae, config(prior_learning_rate=1e-3))
    torch.manual_seed(3)
    z = vae.encoder(x).sample()
    loss = Elbo().differentiable_loss(vae.prior.model, vae.prior.guide, z, vae.encoder, vae.prior.centres(vae.encoder))
    gradients = torch.autograd.grad(loss / 16, vae.prior_parameters())
    expected = [p - 1e-3 * g / (g.abs() + 1e-7) for p, g in zip(vae.prior_parameters(), gradients, strict=True)]
    torch.manual_seed(3)
    objective = trainer.steps.map_step(x)
    torch.testing.assert_close(objective, -loss.detach() / 16)
    torch.testing.assert_close([p.detach() for p in vae.prior_parameters()], [p.detach() for p in expected])


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("expectation", ["analytic", "sampled"])
def test_an_iteration_encodes_rows_and_pseudo_inputs_twice_or_once(reuse, expectation):
    vae, x, given = build("vmm", expectation=expectation), data(), []
    steps = Trainer(vae, config(reuse_draws=reuse)).steps
    prior_model, encodings = vae.prior.model, []
    vae.prior.model = lambda z, *rest: given.append(z) or prior_model(z, *rest)
    vae.encoder.register_forward_hook(lambda encoder, inputs, q: encodings.append(len(inputs[0])))
    steps.iteration(x)
    assert (given[0] is steps.elbo.z) == reuse
    assert sorted(encodings) == sorted([len(x), K] * (1 if reuse else 2))


@pytest.mark.parametrize("prior", ["gmm", "vmm"])
@pytest.mark.parametrize("networks", [plain, noisy])
def test_a_joint_step_has_both_gradients_before_either_step(prior, networks):
    """Each gradient from a pass of its own; Adam's first step is lr * sign of the gradient, up to eps."""
    vae, x = build(prior, networks), data(16)
    steps, start = Trainer(vae, config(prior_learning_rate=1e-2, reuse_draws=True)).steps, state(vae)
    torch.manual_seed(3)
    elbo = Elbo()
    svi = elbo.differentiable_loss(vae.model, vae.guide, x, vae.trained_prior()) / 16
    of_networks = torch.autograd.grad(svi, vae.network_parameters(), allow_unused=True)
    vae.load_state_dict(start)  # the statistics of the noisy networks
    pair, encoder = (vae.prior.model, vae.prior.guide), vae.encoder
    map_ = elbo.differentiable_loss(*pair, elbo.z, encoder, vae.prior.centres(encoder)) / 16
    of_prior = torch.autograd.grad(map_, vae.prior_parameters())
    rates = [(vae.network_parameters(), of_networks, config().learning_rate), (vae.prior_parameters(), of_prior, 1e-2)]
    pairs = [(p, rate, g) for ps, gs, rate in rates for p, g in zip(ps, gs, strict=True)]
    expected = [p - (0 if g is None else rate * g / (g.abs() + 1e-7)) for p, rate, g in pairs]
    torch.manual_seed(3)
    terms, _ = steps.iteration(x)
    torch.testing.assert_close(terms[[0, 2]], -torch.stack([svi, map_]).detach())
    trained = [p.detach() for parameters, *_ in rates for p in parameters]
    torch.testing.assert_close(trained, [p.detach() for p in expected], atol=2e-5, rtol=1e-4)


def test_pseudo_inputs_are_encoded_again_after_an_error():
    vae = build("vmm")
    with pytest.raises(KeyError), encoded_once(vae):
        first = vae.prior.centres(vae.encoder)
        assert vae.prior.centres(vae.encoder).loc is first.loc
        raise KeyError
    assert vae.prior.centres(vae.encoder).loc is not first.loc


def test_svi_step_lets_the_gradient_flow_through_the_encoder_into_the_centres():
    vae, x = build("vmm"), data(16)
    trainer, weight = Trainer(vae, config()), vae.encoder.head.weight
    start = state(vae)

    def gradient(p_z) -> torch.Tensor:
        vae.load_state_dict(start)
        torch.manual_seed(3)
        loss = Elbo().differentiable_loss(vae.model, vae.guide, x, p_z()) / 16
        return torch.autograd.grad(loss, weight)[0]

    def constant():
        p_z = vae.prior(vae.encoder)
        p_z.loc, p_z.whitener, p_z.log_norm = p_z.loc.detach(), p_z.whitener.detach(), p_z.log_norm.detach()
        return p_z

    through, held = gradient(lambda: vae.prior(vae.encoder)), gradient(constant)
    assert not torch.allclose(through, held)
    torch.manual_seed(3)
    trainer.steps.svi_step(x)
    torch.testing.assert_close(weight.grad, through)


@pytest.mark.parametrize("expectation", ["analytic", "sampled"])
def test_svi_step_integrates_the_centres_out_or_draws_them(expectation):
    """As the prior's expectation says: p(z), the ELBO and its gradient."""
    vae, x = build("vmm", expectation=expectation), data(16)
    trainer, start = Trainer(vae, config()), state(vae)
    torch.manual_seed(3)
    expected = vae.prior.sampled(vae.encoder) if expectation == "sampled" else vae.prior(vae.encoder)
    loss = Elbo().differentiable_loss(vae.model, vae.guide, x, expected) / 16
    [gradient] = torch.autograd.grad(loss, vae.encoder.head.weight)
    vae.load_state_dict(start)
    torch.manual_seed(3)
    objective, _, p_z = trainer.steps.svi_step(x)
    torch.testing.assert_close((p_z.loc, p_z.whitener), (expected.loc, expected.whitener))
    torch.testing.assert_close(objective, -loss.detach())
    torch.testing.assert_close(vae.encoder.head.weight.grad, gradient)


def test_short_last_batch_does_not_change_the_weight_of_the_hyperpriors():
    """The MAP objective is a mean over rows plus hyper-priors / m_prior: only their sum over rows may differ."""
    vae, x = build("vmm"), data(50)
    prior, encoder = vae.prior, vae.encoder
    z = encoder(x).mean.detach()

    def hyper_terms(rows: int) -> torch.Tensor:
        batch = z[:rows]
        loss = Elbo().differentiable_loss(prior.model, prior.guide, batch, encoder, prior.centres(encoder)) / rows
        return -loss - prior.clustering(encoder).log_prob(batch).mean()

    full, short = hyper_terms(50), hyper_terms(2)
    torch.testing.assert_close(short, full)
    prior.m_prior = 1.0
    torch.testing.assert_close(hyper_terms(2), 256 * full)
    prior.m_prior = "batch"
    torch.testing.assert_close(hyper_terms(2), 256 / 2 * full)


def test_an_epoch_sees_every_row_once_in_batches():
    vae, x = build("vmm"), data(50)
    trainer, seen = Trainer(vae, config()), []
    trainer.steps.svi_step = lambda batch, step=trainer.steps.svi_step: seen.append(batch) or step(batch)
    progress = []
    row = trainer.train_epoch(x, progress.append)
    assert [len(batch) for batch in seen] == progress == [16, 16, 16, 2]
    together = torch.cat(seen)
    assert not torch.equal(together, x)
    torch.testing.assert_close(together.sort(0).values, x.sort(0).values)
    assert 1 <= row["n_active"] <= K
    assert row["kl"] == pytest.approx(row["log_likelihood"] - row["elbo"])


def test_epoch_means_weigh_batches_by_their_rows():
    vae, x = build("vmm"), data(50)
    trainer, terms = Trainer(vae, config()), []

    def step(batch, step=trainer.steps.svi_step):
        out = step(batch)
        terms.append((len(batch), out[0].item(), out[1].item()))
        return out

    trainer.steps.svi_step = step
    row = trainer.train_epoch(x, lambda rows: None)
    assert row["elbo"] == pytest.approx(sum(n * elbo for n, elbo, _ in terms) / 50)
    assert row["log_likelihood"] == pytest.approx(sum(n * term for n, _, term in terms) / 50)


# Training as a whole


@every_prior
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_prior_trains_and_improves(prior, dtype):
    vae, x = build(prior).to(dtype), data().to(dtype)
    history = Trainer(vae, config(epochs=8)).fit(x, x[:20], progress=False)
    assert len(history) == 8 and [row["epoch"] for row in history] == list(range(1, 9))
    assert history[-1]["elbo"] > history[0]["elbo"] + 1
    assert max(row["val_elbo"] for row in history) > history[0]["val_elbo"] + 1
    assert {value.dtype for value in vae.state_dict().values()} == {dtype}
    assert all(value.isfinite().all() for value in vae.state_dict().values())
    assert all(math.isnan(row["map_objective"]) == (prior in ("standard_normal", "vamp")) for row in history)
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(history))


@pytest.mark.parametrize(
    "settings",
    [
        {"expectation": "sampled"},
        {"responsibilities": "differentiated"},
        {"hyperprior": "reference", "m_prior": "batch"},
    ],
    ids=["sampled", "differentiated", "reference"],
)
def test_settings_of_the_mixture_train(settings):
    history = Trainer(build("vmm", **settings), config(epochs=8)).fit(data(), progress=False)
    assert history[-1]["elbo"] > history[0]["elbo"] + 1


@pytest.mark.parametrize("networks", [plain, noisy])
def test_same_seed_same_numbers_whatever_ran_before(networks):
    x = data()

    def run() -> dict:
        trainer = Trainer(build("vmm", networks), config(epochs=3))
        trainer.fit(x, x[:20], progress=False)
        return {"history": trainer.history, "model": state(trainer.vae)}

    first = run()
    # Another model trained, the global streams moved.
    Trainer(build("gmm", seed=5), config(epochs=1, seed=9)).fit(x, progress=False)
    vae = build("vmm", networks)
    torch.manual_seed(12345)
    torch.randn(77)
    np.random.seed(3)  # noqa: NPY002 - the global stream is the point
    random.seed(4)
    trainer = Trainer(vae, config(epochs=3))
    torch.randn(5)
    trainer.fit(x, x[:20], progress=False)
    assert_same({"history": trainer.history, "model": state(vae)}, first)
    # And another seed gives others.
    other = Trainer(build("vmm", networks), config(epochs=3, seed=1))
    assert other.fit(x, x[:20], progress=False)[0]["elbo"] != first["history"][0]["elbo"]


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_global_state_of_the_caller_is_untouched(validation, fails):
    def callback(row, vae):
        if fails:
            raise RuntimeError("a callback's own")

    vae, x = build("vmm"), data()
    pyro.param("theirs", torch.tensor(1.0))
    np.random.seed(3)  # noqa: NPY002 - the global stream is the point
    random.seed(4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with pyro.validation_enabled(validation):
        with pytest.raises(RuntimeError, match="a callback's own") if fails else nullcontext():
            Trainer(vae, config(epochs=2)).fit(x, x[:20], callbacks=[callback], progress=False)
        assert _validates() == validation
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]
    assert torch.get_default_dtype() == torch.float64
    assert list(pyro.get_param_store()) == ["theirs"]


def _validates() -> bool:
    try:
        pyro.distributions.Normal(torch.tensor(0.0), torch.tensor(-1.0))
    except ValueError:
        return True
    return False


# Resuming


def run_to(epochs: int, build_vae, x, labels, checkpoints: list, resume: dict | None = None, **changes) -> Trainer:
    trainer = Trainer(build_vae(), config(epochs=epochs, **changes))
    if resume:
        trainer.load_state_dict(resume)
    trainer.fit(x, x[:20], labels, checkpoint=checkpoints.append, progress=False)
    return trainer


@every_prior
@pytest.mark.parametrize("networks", [plain, noisy])
def test_resuming_from_a_file_is_bit_identical(prior, networks, tmp_path):
    x, labels = data(), np.arange(20) % 2
    whole, half, rest = [], [], []
    trained = run_to(6, lambda: build(prior, networks), x, labels, whole)
    run_to(3, lambda: build(prior, networks), x, labels, half)
    files.save({"state": half[-1]}, tmp_path / "checkpoint.pt", "checkpoint")
    # The fresh model starts elsewhere, the global stream has moved.
    read = files.load(tmp_path / "checkpoint.pt", "checkpoint")["state"]
    torch.randn(13)
    resumed = run_to(6, lambda: build(prior, networks, seed=8), x, labels, rest, read)
    assert_same(rest[-1], whole[-1])
    assert_same(state(resumed.vae), state(trained.vae))
    assert len(resumed.history) == 6 and resumed.best["epoch"] >= 1
    # The clock goes on.
    assert resumed.history[3]["seconds"] > resumed.history[2]["seconds"]


def test_a_state_survives_being_resumed_from():
    x, checkpoints = data(), []
    run_to(3, build, x, None, checkpoints)
    before = copy.deepcopy(checkpoints[-1])
    run_to(6, build, x, None, [], checkpoints[-1])
    assert_same(checkpoints[-1], before)


def test_resuming_from_the_state_after_fit_is_bit_identical():
    x, whole, rest = data(), [], []
    run_to(6, build, x, None, whole)
    half = run_to(3, build, x, None, [])
    run_to(6, build, x, None, rest, half.state_dict())
    assert_same(rest[-1], whole[-1])


@pytest.mark.parametrize("where", ["callback", "step", "first epoch"])
def test_interrupt_leaves_a_checkpoint_that_continues_bit_identically(where):
    x, whole, interrupted, rest = data(), [], [], []
    trained = run_to(6, build, x, None, whole)
    vae = build()
    trainer = Trainer(vae, config())

    def callback(row, vae):
        if where == "callback" and row["epoch"] == 4:
            raise KeyboardInterrupt

    def map_step(batch, step=trainer.steps.map_step, **settings):
        step(batch)
        if where == "first epoch" or (where == "step" and len(trainer.history) == 3):
            raise KeyboardInterrupt
        return torch.tensor(0.0)

    if where != "callback":
        original = trainer.steps.map_step
        trainer.steps.map_step = lambda batch, **settings: (
            map_step(batch) if len(trainer.history) == 3 or where != "step" else original(batch)
        )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, x[:20], callbacks=[callback], checkpoint=interrupted.append, progress=False)
    done = 0 if where == "first epoch" else 3
    assert len(interrupted[-1]["history"]) == len(trainer.history) == done
    assert_same(state(vae), interrupted[-1]["model"])
    resumed = run_to(6, lambda: build(seed=8), x, None, rest, interrupted[-1])
    assert_same(rest[-1], whole[-1])
    assert_same(state(resumed.vae), state(trained.vae))


def test_the_interrupted_trainer_itself_continues_bit_identically():
    x, whole, rest, interrupts = data(), [], [], [4]

    def callback(row, vae):
        if row["epoch"] in interrupts:
            interrupts.clear()
            raise KeyboardInterrupt

    run_to(6, build, x, None, whole)
    trainer = Trainer(build(), config())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, x[:20], callbacks=[callback], progress=False)
    torch.randn(5)
    trainer.fit(x, x[:20], callbacks=[callback], checkpoint=rest.append, progress=False)
    assert_same(rest[-1], whole[-1])


def test_checkpoints_come_every_so_many_epochs_and_at_the_end():
    checkpoints = []
    run_to(5, build, data(), None, checkpoints, checkpoint_every=2)
    assert [len(checkpoint["history"]) for checkpoint in checkpoints] == [2, 4, 5]


# Early stopping


class Scripted(Trainer):
    """Validates to given numbers."""

    def __init__(self, vae, config, values):
        super().__init__(vae, config)
        self.values, self.states = values, []

    def evaluate(self, x):
        self.states.append(state(self.vae))
        return self.values[len(self.history)]


def test_early_stopping_restores_the_best_epoch():
    x = data()
    trainer = Scripted(build(), config(epochs=10, patience=3), [-5.0, -2.0, -3.0, -2.0, -4.0, 0.0, 0.0])
    trainer.fit(x, x[:20], progress=False)
    # A tie is no improvement; epochs 3 to 5 are the three that patience allows.
    assert len(trainer.history) == 5 and trainer.best["epoch"] == 2 and trainer.best["value"] == -2.0
    assert_same(state(trainer.vae), trainer.states[1])
    assert changed(trainer.states[4], trainer.vae)


def test_early_stopping_survives_a_break():
    x, values, checkpoints = data(), [-5.0, -2.0, -3.0, -2.5, -4.0, 0.0, 0.0], []
    Scripted(build(), config(epochs=4, patience=3), values).fit(
        x, x[:20], checkpoint=checkpoints.append, progress=False
    )
    resumed = Scripted(build(seed=8), config(epochs=10, patience=3), values)
    resumed.load_state_dict(checkpoints[-1])
    resumed.fit(x, x[:20], progress=False)
    assert len(resumed.history) == 5 and resumed.best["epoch"] == 2


def test_without_patience_all_epochs_run_and_the_best_is_restored():
    x = data()
    trainer = Scripted(build(), config(epochs=4), [-1.0, -2.0, -3.0, -4.0])
    assert len(trainer.fit(x, x[:20], progress=False)) == 4
    assert_same(state(trainer.vae), trainer.states[0])


def test_without_validation_rows_the_training_elbo_is_monitored():
    trainer = Trainer(build(), config(epochs=4))
    history = trainer.fit(data(), progress=False)
    elbos = [row["elbo"] for row in history]
    assert trainer.best["value"] == max(elbos) and trainer.best["epoch"] == 1 + elbos.index(max(elbos))
    assert all(math.isnan(row["val_elbo"]) for row in history)


def test_a_callback_may_stop_training_and_sees_the_row_and_the_model():
    seen = []

    def callback(row, vae):
        seen.append((row["epoch"], vae))
        return row["epoch"] == 2

    vae = build()
    history = Trainer(vae, config()).fit(data(), callbacks=[callback], progress=False)
    assert len(history) == 2 and seen == [(1, vae), (2, vae)]


def test_monitoring_nmi_needs_labels():
    x, labels = data(), np.arange(20) % 2
    trainer = Trainer(build(), config(epochs=3, monitor="val_nmi"))
    for rows, given in [(None, None), (x[:20], None), (None, labels)]:
        with pytest.raises(ValueError, match="monitor='val_nmi' needs validation rows with labels"):
            trainer.fit(x, rows, given, progress=False)
    assert trainer.history == []
    history = trainer.fit(x, x[:20], labels, progress=False)
    scores = [row["val_nmi"] for row in history]
    assert trainer.best["value"] == max(scores) and all(0 <= score <= 1 for score in scores)


def test_labels_are_not_used_unless_asked_for():
    x = data()
    runs = []
    for labels in (None, np.arange(20) % 2, np.arange(20) % 3):
        trainer = Trainer(build(), config(epochs=3))
        trainer.fit(x, x[:20], labels, progress=False)
        runs.append(state(trainer.vae))
        assert all(("val_nmi" in row) == (labels is not None) for row in trainer.history)
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def test_evaluate_is_the_mean_elbo_in_inference_mode_and_repeats():
    vae, x = build("vmm", noisy), data()
    trainer, before = Trainer(vae, config(seed=5)), state(vae)
    value = trainer.evaluate(x)
    assert trainer.evaluate(x) == value
    assert not changed(before, vae) and vae.training
    torch.manual_seed(99)
    stream = torch.get_rng_state()
    trainer.evaluate(x)
    assert torch.equal(torch.get_rng_state(), stream)
    vae.eval()
    torch.manual_seed(5)
    q, p_z = vae.encoder(x), vae.prior(vae.encoder)
    z = q.rsample()
    expected = vae.p_x(z).log_prob(x) + p_z.log_prob(z) - q.log_prob(z)
    assert value == pytest.approx(expected.mean().item())


# Divergence

# Pyro warns of its own accord; the error is what counts.
pyro_warns = pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")


@pyro_warns
@pytest.mark.parametrize(
    ("break_it", "term"),
    [
        (lambda vae: vae.likelihood.scale_raw.data.fill_(float("nan")), "elbo"),
        (lambda vae: vae.encoder.head.bias.data.fill_(float("nan")), "elbo"),
        (lambda vae: vae.prior.reciprocal_alpha_raw.data.fill_(float("nan")), "map_objective"),
        (lambda vae: vae.prior.precision_raw.data.fill_(float("nan")), "elbo"),
    ],
    ids=["likelihood", "encoder", "alpha", "precision"],
)
def test_divergence_names_step_and_term_and_restores_the_last_good_parameters(break_it, term):
    vae, x, checkpoints = build("vmm"), data(), []
    trainer = Trainer(vae, config())
    svi_step = trainer.steps.svi_step

    def breaking(batch):
        if len(trainer.history) == 2 and len(batch) == 2:  # the fourth and last batch of the third epoch
            break_it(vae)
        return svi_step(batch)

    trainer.steps.svi_step = breaking
    with pytest.raises(TrainingDiverged, match=rf"^{term} is nan in epoch 3, step 4 of 4; .* epoch 2\b"):
        trainer.fit(x, x[:20], checkpoint=checkpoints.append, progress=False)
    assert len(trainer.history) == 2
    assert all(value.isfinite().all() for value in vae.state_dict().values())
    good = run_to(2, build, x, None, reference := [])
    assert_same(checkpoints[-1], {**reference[-1], "diverged": True})
    assert_same(state(vae), reference[-1]["model"])
    assert good.history[1]["elbo"] == trainer.history[1]["elbo"]


@pyro_warns
def test_divergence_from_a_callback_and_from_huge_data():
    vae, x = build("vmm"), data()

    def callback(row, vae):
        if row["epoch"] == 2:
            vae.likelihood.scale_raw.data.fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match="elbo is nan in epoch 3, step 1 of 4"):
        Trainer(vae, config()).fit(x, callbacks=[callback], progress=False)
    vae = build("vmm").float()
    start = state(vae)
    huge = (1e30 * data()).float()
    with pytest.raises(TrainingDiverged, match=r"elbo is (nan|-inf) in epoch 1, step 1 of 4; .* epoch 0\b"):
        Trainer(vae, config()).fit(huge, progress=False)
    assert_same(state(vae), start)


@pyro_warns
@pytest.mark.parametrize("name", ["likelihood.scale_raw", "prior.reciprocal_alpha_raw"])
def test_parameters_broken_by_the_last_update_of_an_epoch_are_no_good_state(name):
    """The losses of the epoch were finite, but its last step left NaN: nothing may call that state good or best."""
    vae, x = build("vmm"), data()
    trainer = Trainer(vae, config())
    map_step = trainer.steps.map_step

    def breaking(batch, **settings):
        value = map_step(batch, **settings)
        if len(trainer.history) == 2 and len(batch) == 2:
            vae.get_parameter(name).data.fill_(float("nan"))
        return value

    trainer.steps.map_step = breaking
    with pytest.raises(TrainingDiverged):
        trainer.fit(x, x[:20], progress=False)
    assert all(value.isfinite().all() for value in vae.state_dict().values())


# Configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs=0 should be a whole number, at least 1"),
        ({"batch_size": -3}, "batch_size=-3 should be a whole number, at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every=0 should be a whole number, at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 should be a positive number"),
        ({"decay_fraction": -0.1}, "decay_fraction=-0.1 should be between 0 and 1"),
        ({"decay_fraction": 7}, "decay_fraction=7 should be between 0 and 1"),
        ({"freeze_after": 0}, "freeze_after=0 should be a whole number, at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan should be a positive number"),
        ({"prior_learning_rate": -1.0}, "prior_learning_rate=-1.0 should be a positive number"),
        ({"patience": 0}, "patience=0 should be a whole number, at least 1"),
        ({"monitor": "nmi"}, "monitor='nmi' should be one of"),
    ],
)
def test_configuration_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**changes)


def test_prior_learning_rate_is_the_networks_unless_given():
    for given, expected in [(None, 1e-2), (3e-3, 3e-3)]:
        trainer = Trainer(build(), config(prior_learning_rate=given))
        assert trainer.steps.prior_optimizer.param_groups[0]["lr"] == expected
        assert trainer.steps.network_optimizer.param_groups[0]["lr"] == 1e-2
    assert Trainer(build("vamp"), config()).steps.prior_optimizer is None


# Files


def test_file_round_trip_needs_no_code(tmp_path):
    path = tmp_path / "checkpoint.pt"
    trainer = Trainer(build(), config(epochs=2))
    trainer.fit(data(), progress=False)
    content = {"state": trainer.state_dict(), "note": "text", "numbers": [1, 2.5, None, True]}
    files.save(content, path, "checkpoint")
    raw = torch.load(path, weights_only=True)
    assert raw["format_version"] == files.FORMAT_VERSION and raw["kind"] == "checkpoint"
    read = files.load(path, "checkpoint")
    assert_same({name: read[name] for name in content}, content)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_file_and_no_litter(existing, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    if existing:
        files.save({"value": 1}, path, "model")
    write_bytes = Path.write_bytes

    def full(self, content):
        write_bytes(self, bytes(content)[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"can't save .*model\.pt: No space left on device") as error:
        files.save({"value": 2}, path, "model")
    assert error.value.errno == errno.ENOSPC
    assert [entry.name for entry in tmp_path.iterdir()] == (["model.pt"] if existing else [])
    if existing:
        assert files.load(path, "model")["value"] == 1
    monkeypatch.undo()
    files.save({"value": 2}, path, "model")
    assert files.load(path, "model")["value"] == 2


def test_save_into_a_missing_folder_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"can't save .*nowhere.*model\.pt"):
        files.save({}, tmp_path / "nowhere" / "model.pt", "model")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_load_refuses_a_truncated_file(kept, tmp_path):
    path = tmp_path / "model.pt"
    files.save({"weights": torch.randn(1000)}, path, "model")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"model\.pt is not a whole pyro_vmm file"):
        files.load(path, "model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "is not a whole pyro_vmm file"),
        ([1, 2], "is not a pyro_vmm model"),
        ({"weights": 1}, "is not a pyro_vmm model"),
        ({"kind": "checkpoint", "format_version": 1}, "is not a pyro_vmm model"),
        ({"kind": "model", "format_version": 99}, "has format version 99, this version of pyro_vmm reads 1"),
        ({"kind": "model"}, "has format version None"),
        ({"kind": "model", "format_version": 1, "code": Path("x")}, "is not a whole pyro_vmm file"),
    ],
    ids=["text", "list", "dict", "kind", "version", "no version", "code"],
)
def test_load_refuses_a_foreign_file(content, message, tmp_path):
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        files.load(path, "model")
    assert "\n" not in str(error.value) and "model.pt" in str(error.value)


def test_load_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model\.pt"):
        files.load(tmp_path / "model.pt", "model")


# Learning rates


def test_learning_rates_fall_over_the_last_epochs_along_a_half_cosine():
    trainer, rates = (
        Trainer(build(), config(epochs=6, decay_fraction=0.5, learning_rate=0.02, prior_learning_rate=0.01)),
        [],
    )
    steps = trainer.steps

    def callback(row, vae):
        rates.append([o.param_groups[0]["lr"] for o in (steps.network_optimizer, steps.prior_optimizer)])

    trainer.fit(data(), callbacks=[callback], progress=False)
    networks, prior = np.array(rates).T
    fall = [(1 + math.cos(math.pi * t)) / 2 for t in (1 / 4, 2 / 4, 3 / 4)]
    np.testing.assert_allclose(networks, 0.02 * np.array([1, 1, 1, *fall]))
    np.testing.assert_allclose(prior, networks / 2)


def test_constant_learning_rates_are_left_to_whoever_changes_them():
    trainer = Trainer(build(), config(epochs=3))
    group = trainer.steps.network_optimizer.param_groups[0]
    trainer.fit(data(), callbacks=[lambda row, vae: group.update(lr=0.5 * group["lr"])], progress=False)
    assert group["lr"] == pytest.approx(1e-2 / 8)


def test_resuming_in_the_decay_is_bit_identical():
    half = []
    trainer = Trainer(build(), config(epochs=6, decay_fraction=2 / 3))
    trainer.fit(data(), callbacks=[lambda row, vae: row["epoch"] == 4], checkpoint=half.append, progress=False)
    resumed = Trainer(build(), config(epochs=6, decay_fraction=2 / 3))
    resumed.load_state_dict(half[-1])
    resumed.fit(data(), progress=False)
    trainer = Trainer(build(), config(epochs=6, decay_fraction=2 / 3))
    trainer.fit(data(), progress=False)
    assert_same(resumed.state_dict(), trainer.state_dict())


def test_a_fitted_model_is_not_in_training():
    trainer = Trainer(build("vmm", noisy), config(epochs=2))
    trainer.fit(data(), data(20), progress=False)
    assert not any(module.training for module in trainer.vae.modules())

    def callback(row, vae):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(trainer.vae, config()).fit(data(), callbacks=[callback], progress=False)
    assert not any(module.training for module in trainer.vae.modules())


@pytest.mark.parametrize("changes", [{"learning_rate": 1e-5}, {"monitor": "val_nmi"}, {"freeze_after": None}])
def test_another_run_is_not_continued(changes):
    trainer = Trainer(build(), config(epochs=2))
    trainer.fit(data(), progress=False)
    other = Trainer(build(), config(**changes))
    with pytest.raises(ValueError, match=f"other settings: {next(iter(changes))}="):
        other.load_state_dict(trainer.state_dict())
    Trainer(build(), config(epochs=9, patience=3, checkpoint_every=2)).load_state_dict(trainer.state_dict())


def test_networks_that_are_not_trained_stay_as_they_are():
    vae = build()
    for network in (vae.encoder, vae.decoder, vae.likelihood):
        network.requires_grad_(False)
    start = state(vae)
    trainer = Trainer(vae, config(epochs=4, decay_fraction=0.5, prior_learning_rate=2e-2))
    trainer.fit(data(), data(20), progress=False)
    trainer.restore_best()
    of_prior = {name for name in start if name.startswith("prior.")}
    assert changed(start, vae) == of_prior
    assert trainer.steps.prior_optimizer.param_groups[0]["lr"] < 2e-2
    Trainer(vae, trainer.config).load_state_dict(trainer.state_dict())


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("x", lambda x: x[:0], "x has no rows"),
        ("x_val", lambda x: x[:0], "x_val has no rows"),
        ("x", torch.Tensor.float, r"x is of torch\.float32, the model of torch\.float64"),
        ("x_val", lambda x: x / 0, "x_val holds values that are not finite"),
    ],
)
def test_rows_that_can_not_be_trained_on(name, spoil, message):
    rows = {"x": data(), "x_val": data(20)}
    rows[name] = spoil(rows[name])
    with pytest.raises(ValueError, match=message):
        Trainer(build(), config()).fit(**rows, progress=False)
