"""Recorded training steps: the same numbers as eager ones, by shape of minibatch, and what happens when they can't be.

Without a GPU, :class:`common.Reruns` stands in for CUDA graphs: it replays by running the step again
on the same tensors. The tests marked ``cuda`` are the same ones with CUDA graphs.
"""

import common
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from common import D, G, K, Reruns, data, every_prior, noisy, plain
from torch import nn

from pyro_vmm.inference import Steps, Trainer, TrainingConfig
from pyro_vmm.inference.steps import choose_recorder
from pyro_vmm.likelihoods import CustomLikelihood
from pyro_vmm.models import VAE
from pyro_vmm.priors import VampMixture
from pyro_vmm.runtime.captured import MOST_SHAPES, Captured, describe
from pyro_vmm.runtime.cuda_graphs import CudaGraphs

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])


class Counted(Reruns):
    """Reruns that count what is asked of them; each of them may fail at a call of the step's own."""

    def __init__(self, fails: str | None = None):
        self.rehearsals, self.recordings, self.fails = 0, 0, fails

    def rehearse(self, step, x):
        self.rehearsals += 1
        outputs = super().rehearse(step, x)
        if self.fails == "rehearsal":  # at the very end: all that it did has to be undone
            raise RuntimeError("called a synchronizing CUDA operation")
        return outputs

    def record(self, step, x, groups, parameters=()):
        self.recordings += 1
        if self.fails == "recording":
            message = "operation not permitted when stream is capturing\nand more"
            raise RuntimeError(message)
        return super().record(step, x, groups)


def build(prior: str = "vmm", networks=plain, device: str = "cpu", **settings) -> VAE:
    return common.build(prior, networks, **settings).to(device)


def config(**changes) -> TrainingConfig:
    return common.config(**{"epochs": 4, **changes})


def recorder_on(device: str):
    return CudaGraphs(torch.device(device)) if device == "cuda" else Counted()


def trainer(vae: VAE, recorder=None, **changes) -> Trainer:
    """One whose steps are recorded, by this recorder; eager without."""
    found = Trainer(vae, config(capture="auto" if recorder else False, **changes))
    found.steps = Steps(vae, found.config, recorder)
    return found


def everything(found: Trainer) -> dict:
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in found.history]
    return {"history": history, "model": found.vae.state_dict(), **found.steps.optimizer_states()}


def assert_alike(left, right) -> None:
    """To the last digit on a CPU; on a GPU products may be summed in another order."""
    on_cpu = all(parameter.device.type == "cpu" for parameter in left["model"].values())
    tolerance = {"rtol": 0, "atol": 0} if on_cpu else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(left, right, **tolerance, equal_nan=True)


# The numbers


@every_device
@pytest.mark.parametrize("networks", [plain, noisy])
@every_prior
def test_training_gives_the_numbers_of_eager_steps(prior, networks, device):
    x, runs = data().to(device), []
    for recorder in (None, recorder_on(device)):
        found = trainer(build(prior, networks, device), recorder)
        found.fit(x, x[:20], progress=False)
        runs.append(everything(found))
    assert_alike(*runs)
    if device == "cpu":
        # Full and short minibatches.
        assert (recorder.rehearsals, recorder.recordings) == (2, 2)


@every_device
@pytest.mark.parametrize("settings", [{"expectation": "sampled"}, {"responsibilities": "differentiated"}])
def test_forty_steps_agree(settings, device):
    x, found = data(32).to(device), []
    for recorder in (None, recorder_on(device)):
        steps = Steps(build("vmm", noisy, device, **settings).train(), config(capture=False), recorder)
        torch.manual_seed(3)
        terms = [steps.iterate(x)[0].clone() for _ in range(40)]
        assert steps.iterate.obstacle is None
        found.append({"terms": torch.stack(terms), "model": steps.vae.state_dict(), **steps.optimizer_states()})
    assert found[0]["terms"][-1, 0] > found[0]["terms"][0, 0] + 1
    assert_alike(*found)


@every_device
def test_pseudo_inputs_that_are_not_trained_stay(device):
    x, runs = data().to(device), []
    for recorder in (None, recorder_on(device)):
        vae = build("vmm", device=device)
        u = vae.prior.pseudo_inputs.requires_grad_(False).u.clone()
        found = trainer(vae, recorder)
        found.fit(x, x[:20], progress=False)
        assert torch.equal(vae.prior.pseudo_inputs.u, u)
        runs.append(everything(found))
    assert_alike(*runs)


@every_device
def test_resuming_in_the_middle_is_bit_identical(device):
    x, ends = data().to(device), []
    whole = trainer(build("vmm", noisy, device), recorder_on(device))
    whole.fit(x, x[:20], checkpoint=ends.append, progress=False)
    half, checkpoints = trainer(build("vmm", noisy, device), recorder_on(device), epochs=2), []
    half.fit(x, x[:20], checkpoint=checkpoints.append, progress=False)
    rest = trainer(build("vmm", noisy, device), recorder_on(device))
    rest.load_state_dict(checkpoints[-1])
    rest.fit(x, x[:20], progress=False)
    assert_alike(everything(rest), everything(whole))
    # And within one trainer, whose optimisers' tensors were replaced on loading.
    whole.load_state_dict(checkpoints[-1])
    whole.fit(x, x[:20], progress=False)
    assert_alike(everything(whole), everything(rest))


@cuda
def test_cuda_graphs_are_off_unless_asked():
    vae = build(device="cuda")
    assert choose_recorder(vae, config()) is None and choose_recorder(vae, config(capture=False)) is None
    assert isinstance(choose_recorder(vae, config(capture="auto")), CudaGraphs)


def test_capture_has_four_values():
    with pytest.raises(ValueError, match="capture='always' should be one of"):
        config(capture="always")


# Recordings and what they hold


def recorded(vae: nn.Module | None = None, recorder: Counted | None = None, **settings) -> tuple[Steps, Counted]:
    recorder = recorder or Counted()
    return Steps((vae or build()).train(), config(capture=False, **settings), recorder), recorder


def test_each_shape_has_a_recording_up_to_a_number():
    steps, recorder = recorded()
    for _ in range(3):
        for rows in range(2, MOST_SHAPES + 5):
            steps.iterate(data(rows))
    assert (recorder.rehearsals, recorder.recordings) == (MOST_SHAPES, MOST_SHAPES)


def test_outputs_are_the_same_tensors_and_inputs_are_copied():
    steps, _ = recorded()
    x = data(16)
    outputs = [steps.iterate(x) for _ in range(4)]
    assert outputs[2][0] is outputs[3][0] and outputs[2][1] is outputs[3][1]
    before = x.clone()
    steps.iterate(data(32)[16:])
    assert torch.equal(x, before)


def learning_rate(steps: Steps) -> None:
    steps.network_optimizer.param_groups[0]["lr"] = 1e-4


def granularity(steps: Steps) -> None:
    steps.vae.prior.m_prior = 10.0


def moments(steps: Steps) -> None:
    steps.load_optimizer_states(steps.optimizer_states())


def parameters(steps: Steps) -> None:
    steps.vae.encoder.head.weight.data = steps.vae.encoder.head.weight.data.clone()


def mode(steps: Steps) -> None:
    steps.vae.encoder.eval()


def smaller_prior(steps: Steps) -> None:
    steps.vae.prior = VampMixture(D, data(K - 1))
    steps.prior = steps.vae.prior_parameters()
    steps.prior_optimizer = torch.optim.Adam(steps.prior, 1e-2)


def hook(steps: Steps) -> None:
    steps.vae.decoder.register_forward_hook(lambda module, args, out: 0.5 * out)


CHANGES = [learning_rate, granularity, moments, parameters, mode, smaller_prior, hook]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_on_refreshing(change):
    steps, recorder = recorded()
    for _ in range(3):
        steps.iterate(data(16))
    steps.iterate.refresh()
    steps.iterate(data(16))
    assert recorder.recordings == 1, "nothing had changed"
    change(steps)
    steps.iterate.refresh()
    for _ in range(3):
        steps.iterate(data(16))
    assert (recorder.rehearsals, recorder.recordings) == (2, 2)


def test_what_a_list_holds_and_an_object_at_an_old_address_are_seen_on_refreshing():
    steps, recorder = recorded()

    def again() -> int:
        before = recorder.recordings
        steps.iterate.refresh()
        for _ in range(3):
            steps.iterate(data(16))
        return recorder.recordings - before

    steps.vae.numbers, steps.vae.thing = [1.0, {"two": 2.0}], np.float32(1)
    assert again() == 1 and again() == 0
    steps.vae.numbers[1]["two"] = 3.0
    assert again() == 1
    for i in range(4):  # Python gives a new object the address of one that is gone
        steps.vae.thing = None
        steps.vae.thing = np.float32(i)
        assert again() == 1


def anneal(row, vae):
    vae.prior.m_prior = 100.0 / row["epoch"]


def halve(row, vae):
    if row["epoch"] == 2:
        vae.decoder.register_forward_hook(lambda module, args, out: 0.5 * out)


@pytest.mark.parametrize("callback", [anneal, halve])
def test_training_sees_what_a_callback_changes(callback):
    runs = []
    for recorder in (None, Counted()):
        found = trainer(build(), recorder)
        found.fit(data(), callbacks=[callback], progress=False)
        runs.append(everything(found))
    assert_alike(*runs)
    assert recorder.recordings > 2


def test_a_module_may_keep_its_last_output():
    class Keeps(nn.Linear):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    vae = build(networks=lambda features: nn.Sequential(Keeps(features, 8), nn.ReLU()))
    recorder = Counted()
    trainer(vae, recorder).fit(data(), data(20), progress=False)
    assert recorder.recordings == 2


def test_reset_frees_recordings_and_gradients():
    steps, recorder = recorded()
    for _ in range(3):
        steps.iterate(data(16))
    assert any(parameter.grad is not None for parameter in steps.vae.parameters())
    steps.iterate.reset()
    assert all(parameter.grad is None for parameter in steps.vae.parameters())
    steps.iterate(data(16))
    assert recorder.rehearsals == 2


@cuda
def test_adam_is_capturable_in_recordings_alone():
    steps = Steps(build(device="cuda").train(), config(capture=True))
    for _ in range(3):
        steps.iterate(data(16).cuda())
    assert not any(group["capturable"] for group in steps.network_optimizer.param_groups)


# What can't be recorded


@pytest.mark.parametrize("fails", ["rehearsal", "recording"])
def test_a_step_that_cannot_be_recorded_runs_eagerly_with_the_same_numbers(fails):
    x = data()
    eager = trainer(build("vmm", noisy))
    eager.fit(x, x[:20], progress=False)
    found = trainer(build("vmm", noisy), Counted(fails))
    with pytest.warns(UserWarning, match="can't be recorded: (called|operation)") as warned:
        found.fit(x, x[:20], progress=False)
    assert len(warned) == 1
    assert_alike(everything(found), everything(eager))
    assert "test_captured.py" in found.steps.iterate.obstacle and "and more" not in found.steps.iterate.obstacle


def test_who_insists_gets_an_error_and_the_state_before():
    vae = build("vmm", noisy).train()
    recorder = Counted("rehearsal")
    steps = Steps(vae, config(capture=False))
    captured = Captured(steps.iteration, vae, recorder, lambda: [steps.network_optimizer], vae, "raise")
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    random_numbers = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"can't be recorded: .* capture='auto' trains eagerly"):
        captured(data())
    torch.testing.assert_close(dict(vae.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert not steps.network_optimizer.state


def test_a_steps_own_error_is_not_taken_for_an_obstacle(recwarn):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    vae = build()
    vae.decoder.body = Broken()
    steps, _ = recorded(vae)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        steps.iterate(data())
    assert not recwarn and steps.iterate.obstacle is None


def test_an_error_is_described_by_its_place():
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert describe(caught.value).endswith("torch.zeros(2) @ torch.zeros(3))")
    assert describe(RuntimeError("two\nlines")) == "two"
    assert describe(RuntimeError()) == "RuntimeError"


# On a GPU alone


class Waits(nn.Module):
    def forward(self, x):
        return x * float(x.abs().max().clamp(1, 1))


class Draws(nn.Module):
    """Passes the rehearsal, as no value comes to the host, and breaks the recording."""

    def forward(self, x):
        torch.cuda.current_stream().synchronize()
        return x + 0 * torch.randn_like(x)


@cuda
@pytest.mark.parametrize("layer", [Waits, Draws])
def test_a_gpu_is_usable_after_a_failure(layer):
    x = data().to("cuda")

    def networks(features):
        return nn.Sequential(layer(), noisy(features))

    runs = []
    for capture in (False, "auto"):
        found = Trainer(build("vmm", networks, "cuda"), config(capture=capture))
        if capture:
            with pytest.warns(UserWarning, match="can't be recorded as a CUDA graph"):
                found.fit(x, x[:20], progress=False)
        else:
            found.fit(x, x[:20], progress=False)
        runs.append(everything(found))
    assert_alike(*runs)
    # And another model can be recorded afterwards.
    found = Trainer(build("vmm", noisy, "cuda"), config(capture=True))
    found.fit(x, progress=False)


@cuda
def test_numbers_in_a_users_likelihood_are_recorded():
    vae = build(device="cuda")
    vae.likelihood = CustomLikelihood((G,), lambda h: dist.Laplace(h, 1.0).to_event(1))
    Trainer(vae, config(capture=True)).fit(data().to("cuda"), progress=False)
