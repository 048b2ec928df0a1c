"""No training step makes the host wait for the device or brings it numbers: both are slow, and forbid CUDA graphs.

The steps run on torch's "meta" device, which computes shapes alone: an operation that needs a value raises there, one
that moves data between the devices can be seen, and those that check values inside of their CUDA kernels are listed.
"""

from contextlib import contextmanager, nullcontext

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from common import CorrelatedEncoder, every_prior
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vmm.estimators import building
from pyro_vmm.inference import Steps, TrainingConfig
from pyro_vmm.inference.steps import quiet_pyro
from pyro_vmm.likelihoods import CELL_LIKELIHOODS, LIKELIHOODS, CustomLikelihood
from pyro_vmm.models import VAE
from pyro_vmm.networks import Decoder, cell_mlp, conv_encoder, mlp
from pyro_vmm.priors.balance import BatchBalance
from pyro_vmm.priors.pseudo_inputs import PSEUDO_BATCHES, CellPseudoInputs
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.cuda_graphs import DeviceConstants

D, K, M = 2, 3, 8

# What waits for the device in CUDA: the size of the result depends on values, or values are checked.
WAITING = {
    "_local_scalar_dense",
    "_linalg_check_errors",
    "_unique2",
    "bincount",
    "equal",
    "item",
    "is_nonzero",
    "masked_select",
    "multinomial",
    "nonzero",
    "repeat_interleave.Tensor",
    "unique_consecutive",
}
# These check the sign of the scale.
WAITING |= {"normal.Tensor_Tensor", "normal.float_Tensor"}


class NoNumbers(TorchFunctionMode):
    """Raises where Python's numbers are brought to the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        if made and result.device.type == "meta" and result is not args[0]:
            raise AssertionError(f"{func.__name__} brings numbers to the device")
        return result


class NoTransfer(TorchDispatchMode):
    """Raises at operations that mix devices, or make the host wait for one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
        if len(devices) > 1:
            raise AssertionError(f"{name} takes numbers from the host to the device, or back")
        if "meta" in devices and (name in WAITING or name.split(".")[0] in WAITING):
            raise AssertionError(f"{name} makes the host wait for the device")
        return result


@contextmanager
def no_waiting():
    with NoNumbers(), NoTransfer():
        yield


def run(vae: nn.Module, x: torch.Tensor, constants=nullcontext) -> None:
    """Two iterations, without Adam's fused kernels, which "meta" has not."""
    steps = Steps(vae.float().train(), TrainingConfig())
    assert steps.iteration(x)[0].isfinite().all(), "the model itself is wrong"
    vae.to("meta")
    steps = Steps(vae, TrainingConfig())
    steps.network_optimizer = torch.optim.SGD(steps.networks)
    steps.prior_optimizer = torch.optim.SGD(steps.prior) if steps.prior else None
    x = x.to("meta")
    with no_waiting(), constants():
        for _ in range(2):
            steps.iteration(x)
            if steps.prior:
                steps.map_step(x)


@pytest.fixture(autouse=True)
def as_in_training():
    torch.set_default_dtype(torch.float32)
    with quiet_pyro():
        yield


def arrays(prior="vmm", likelihood="normal", covariance="full", body=mlp, shape=(4,), **settings) -> VAE:
    options = {"n_categories": 3} if likelihood == "categorical" else {}
    likelihood = building.build_likelihood(likelihood, shape, options)
    rows = torch.rand(K, *shape).round()
    features = nn.Sequential(*likelihood.features())
    width = features(rows)[0].numel()
    encoder = CorrelatedEncoder(nn.Sequential(features, body(width, (8,))), 8, D, covariance)
    decoder = Decoder(mlp(D, (8,)), 8, shape, likelihood.outputs_per_feature)
    return VAE(encoder, decoder, likelihood, building.build_prior(prior, D, rows, settings))


@every_prior
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_priors(prior, covariance):
    run(arrays(prior, covariance=covariance), torch.rand(M, 4))


@pytest.mark.parametrize(
    "settings",
    [
        {"expectation": "sampled"},
        {"responsibilities": "differentiated"},
        {"hyperprior": "reference", "m_prior": "batch"},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("prior", ["gmm", "vmm"])
def test_settings_of_mixtures(prior, settings):
    run(arrays(prior, **settings), torch.rand(M, 4))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods(likelihood):
    # torch's StudentT makes a chi-squared distribution of numbers.
    constants = DeviceConstants if likelihood == "student_t" else nullcontext
    run(arrays(likelihood=likelihood), torch.rand(M, 4).round(), constants)


def test_dropout_and_batch_norm():
    run(arrays(body=lambda *widths: cell_mlp(*widths, dropout=0.2)), torch.rand(M, 4))


def test_convolutions():
    run(arrays(body=lambda *_: conv_encoder((6, 6), width=8), shape=(6, 6)), torch.rand(M, 6, 6))


def cells(likelihood="zinb", pseudo_batch="uniform", covariance="diagonal", library=None, n_batches=2, **options):
    layout = CellLayout(5, (n_batches, 2), 1)
    likelihood = building.build_cell_likelihood(likelihood, layout, options)
    vae = building.build_cell_vae(likelihood, (8,), D, covariance, 0.1, True, library)
    vae.balance = BatchBalance(2.0, n_batches, K) if n_batches > 1 else None
    pseudo_inputs = CellPseudoInputs(layout, rows_of_cells(layout)[:K], pseudo_batch, likelihood.counts)
    vae.prior = building.build_prior("vmm", D, pseudo_inputs, {})
    return vae


def rows_of_cells(layout: CellLayout) -> torch.Tensor:
    counts = torch.randint(2, (M, layout.n_genes)).float()
    counts[:, 0] = 1
    one_hot = [torch.eye(n)[torch.arange(M) % n] for n in layout.n_categories]
    return torch.cat([counts, *one_hot, torch.randn(M, layout.n_continuous), counts.sum(-1, keepdim=True)], -1)


def run_cells(**settings) -> None:
    vae = cells(**settings)
    run(vae, rows_of_cells(vae.layout))


@pytest.mark.parametrize("likelihood", CELL_LIKELIHOODS)
def test_likelihoods_of_cells(likelihood):
    run_cells(likelihood=likelihood)


@pytest.mark.parametrize("dispersion", ["gene-batch", "gene-cell"])
def test_dispersions(dispersion):
    run_cells(dispersion=dispersion)


@pytest.mark.parametrize("pseudo_batch", PSEUDO_BATCHES)
def test_batches_of_pseudo_cells(pseudo_batch):
    run_cells(pseudo_batch=pseudo_batch, covariance="full", n_batches=2)
    run_cells(pseudo_batch=pseudo_batch, n_batches=1)


def test_latent_library_sizes():
    run_cells(library=(torch.zeros(2), torch.ones(2)))


# The guard itself


def waits_for_a_value(x):
    return float(x.sum())


def brings_a_number(x):
    return x + torch.tensor([1.0, 2.0], device=x.device)[0]


def looks_for_positions(x):
    return x[x > 0]


def draws_with_a_checked_scale(x):
    return torch.normal(x, x.abs())


@pytest.mark.parametrize(
    "function", [waits_for_a_value, brings_a_number, looks_for_positions, draws_with_a_checked_scale]
)
def test_the_guard_sees(function):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), no_waiting():
        function(torch.ones(3, device="meta"))


def test_numbers_in_a_users_likelihood_are_made_on_the_device():
    def laplace() -> VAE:
        vae = arrays()
        vae.likelihood = CustomLikelihood((4,), lambda h: dist.Laplace(h, 1.0).to_event(1))
        return vae

    with pytest.raises(AssertionError, match="tensor brings numbers"):
        run(laplace(), torch.rand(M, 4))
    run(laplace(), torch.rand(M, 4), DeviceConstants)


@pytest.mark.parametrize("number", [0.5, 2, True, np.float64(2), np.float32(2), np.int32(2), np.bool_(True)])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_numbers_made_on_the_device_are_torchs(number, dtype):
    like = torch.zeros(2, dtype=torch.float32)
    functions = [
        lambda: torch.tensor(number, dtype=dtype),
        lambda: torch.as_tensor(number, dtype=dtype, device="cpu"),
        lambda: like.new_tensor(number, dtype=dtype),
        lambda: torch.tensor([number], dtype=dtype),
        lambda: torch.as_tensor(like),
    ]
    for function in functions:
        expected = function()
        with DeviceConstants():
            made = function()
        assert torch.equal(made, expected) and made.dtype == expected.dtype
