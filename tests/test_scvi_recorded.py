"""Steps on the prior in scvi-tools' models that are recorded: the numbers of eager ones, and whose code is recorded."""

import numpy as np
import pytest
import torch
from scvi_common import TRAIN, adapted, cells, float32, make, scvi  # noqa: F401

from pyro_vmm.priors.pseudo_inputs import FEW_BATCHES, InBatches
from pyro_vmm.runtime import operations, passes
from pyro_vmm.runtime.captured import Captured
from pyro_vmm.runtime.operations import Operations
from pyro_vmm.runtime.ranks import ALONE
from pyro_vmm.scvi import SCVI, training
from pyro_vmm.scvi.modules import Adapted

pytestmark = pytest.mark.filterwarnings("ignore")
EPOCHS = 6


@pytest.fixture
def replays(monkeypatch):
    """How often a MAP step and log p(z) were repeated; they are recorded at the second minibatch of a shape."""
    monkeypatch.setattr(Operations.__init__, "__defaults__", (1,))
    counted, replay, forward = {"map": 0, "density": 0}, operations._Tape.replay, passes._Repetition.forward

    def count(name):
        counted[name] += 1

    def counting(tape, *given):
        run = replay(tape, *given)
        return lambda *x: (count("map"), run(*x))[1]

    monkeypatch.setattr(operations._Tape, "replay", counting)
    counting_forward = staticmethod(lambda *given: (count("density"), forward(*given))[1])
    monkeypatch.setattr(passes._Repetition, "forward", counting_forward)
    return counted


def trained(cls, eager=False, epochs=EPOCHS, train=(), **settings):
    with pytest.MonkeyPatch.context() as patch:
        if eager:
            patch.setattr(training, "recorder", lambda model, ranks: None)
        model = make(cls, **{"n_components": 8, **settings})
        model.train(max_epochs=epochs, settle=False, **{**TRAIN, **dict(train)})
    return model


def assert_same(one, other):
    torch.testing.assert_close(dict(one.module.state_dict()), dict(other.module.state_dict()), rtol=0, atol=0)
    for name in ("elbo_train", "map_objective", "n_active"):
        np.testing.assert_array_equal(one.history[name].to_numpy(float), other.history[name].to_numpy(float))


@pytest.mark.parametrize("name", adapted.STOCK)
@pytest.mark.parametrize("reuse", [False, True])
def test_a_model_of_each_class_is_that_of_eager_steps(name, reuse, replays):
    cls, train = getattr(adapted, name), {"reuse_draws": reuse}
    assert_same(trained(cls, train=train), trained(cls, eager=True, train=train))
    # Of three steps an epoch: a recording of each shape, and no other.
    assert replays["density"] >= 2 * EPOCHS
    assert not replays["map"] if reuse else replays["map"] >= 2 * EPOCHS


@pytest.mark.parametrize(
    "settings",
    [
        {"prior": "gmm"},
        {"prior": "student_t"},
        {"expectation": "sampled"},
        {"responsibilities": "differentiated"},
        {"pseudo_batch": "held"},
        {"encode_covariates": True},
    ],
)
@pytest.mark.parametrize("reuse", [False, True])
def test_a_model_of_each_prior_is_that_of_eager_steps(settings, reuse, replays):
    settings = {**settings, "train": {"reuse_draws": reuse}}
    assert_same(trained(SCVI, **settings), trained(SCVI, eager=True, **settings))
    assert replays["density"] >= 2 * EPOCHS
    assert not replays["map"] if reuse else replays["map"] >= 2 * EPOCHS


def in_many_batches():
    adata = cells()
    adata.obs["batch"] = [f"b{i % 7}" for i in range(adata.n_obs)]
    return adata


@pytest.mark.parametrize("reuse", [False, True])
def test_random_batches_of_pseudo_cells_are_those_of_eager_steps(reuse, replays):
    settings = {"encode_covariates": True, "train": {"reuse_draws": reuse}}
    one, other = (trained(SCVI, eager, adata=in_many_batches(), **settings) for eager in (False, True))
    assert one.module.vmm.prior.pseudo_inputs.n_batches == 7
    assert replays["density"] >= 2 * EPOCHS
    assert_same(one, other)


def test_a_validation_encodes_pseudo_cells_once_and_in_all_batches(monkeypatch):
    found = []

    drawn, start, end = InBatches.drawn, training.MapStep.on_validation_start, training.MapStep.on_validation_end
    monkeypatch.setattr(InBatches, "drawn", lambda *given: (batches := drawn(*given), found.append(len(batches)))[0])
    monkeypatch.setattr(training.MapStep, "on_validation_start", lambda *given: (start(*given), found.append("start")))
    monkeypatch.setattr(training.MapStep, "on_validation_end", lambda *given: (found.append("end"), end(*given)))
    train = {"train_size": 0.5, "batch_size": 20, "check_val_every_n_epoch": 1}  # four minibatches are held back
    trained(SCVI, eager=True, epochs=3, encode_covariates=True, adata=in_many_batches(), train=train)
    steps = [FEW_BATCHES] * 2 * 4  # the loss and the MAP step, of four minibatches
    assert found[: 3 * 11] == [*steps, "start", 7, "end"] * 3


def test_components_may_leave_while_gradients_add_up(replays):
    settings = {"n_components": 20, "m_prior": 16, "epochs": 12}
    train = {"prior_learning_rate": 0.2, "freeze_after": 2, "reuse_draws": True, "accumulate_grad_batches": 2}
    one = trained(SCVI, train=train, **settings)
    assert one.history["n_trained"]["n_trained"].iloc[-1] < 20
    assert replays["density"]
    assert_same(one, trained(SCVI, eager=True, train=train, **settings))


def test_a_recording_that_fails_leaves_the_gradients_of_the_networks(monkeypatch):
    """It fails at the third minibatch, whose gradients add to those of the two before."""

    def refuse(tape, *given):
        raise RuntimeError("not today")

    monkeypatch.setattr(Operations.__init__, "__defaults__", (2,))
    monkeypatch.setattr(operations._Tape, "replay", refuse)
    train = {"accumulate_grad_batches": 4, "batch_size": 20}
    assert_same(*(trained(SCVI, eager=eager, epochs=2, train=train) for eager in (False, True)))


def test_modules_of_scvi_tools_are_known_and_those_of_others_are_not():
    class Mine(scvi.module.VAE):
        pass

    known = make(SCVI, n_components=4)
    assert isinstance(training.recorder(Adapted(known.module), ALONE), Operations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scvi.model.SCVI, "_module_cls", Mine)
        other = make(SCVI, n_components=4)
    assert training.recorder(Adapted(other.module), ALONE) is None
    known.module.register_forward_hook(lambda *_: None)
    assert training.recorder(Adapted(known.module), ALONE) is None


def test_large_modules_are_not_recorded(monkeypatch):
    model = Adapted(make(SCVI, n_components=4).module)
    size = sum(each.numel() for each in model.parameters())
    monkeypatch.setattr(training, "LARGE", size + 1)
    assert training.recorder(model, ALONE) is not None
    monkeypatch.setattr(training, "LARGE", size)
    assert training.recorder(model, ALONE) is None


def test_a_recorded_map_step_copies_the_prior_alone(monkeypatch):
    """The networks may be large."""
    copied, state = [], Captured._state
    monkeypatch.setattr(Captured, "_state", lambda self: (found := state(self), copied.append(found))[0])
    monkeypatch.setattr(Operations.__init__, "__defaults__", (1,))
    model = trained(SCVI)
    of_prior = sum(each.numel() for each in (*model.module.vmm.prior.parameters(), *model.module.vmm.prior.buffers()))
    assert copied and {sum(tensor.numel() for tensor, _ in each.tensors) for each in copied} == {
        0,
        of_prior,
    }  # 0 of log p(z)
