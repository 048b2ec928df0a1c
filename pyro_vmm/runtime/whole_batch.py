"""Rows that depend on their whole minibatch, when processes hold parts of it.

Three things mix the rows of a minibatch, and each has its own code here: the draws of Pyro's sites in the plate "data",
torch's dropout layers, and its BatchNorm layers.

Experimental: several processes have been tested on CPUs (gloo), but never on GPUs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from pyro import distributions as dist
from pyro.poutine.messenger import Messenger
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pyro_vmm.runtime.ranks import Ranks, together

#: The plate of the rows, in every model and guide.
PLATE = "data"


@contextmanager
def whole_batch(ranks: Ranks, network: nn.Module) -> Iterator[None]:
    """A context in which rows are treated as in one process that holds the whole current minibatch.

    The processes have the same random numbers: each draws those of the whole minibatch and uses those of its rows.
    BatchNorm's statistics are those of the whole minibatch. A network that draws by other means than torch's layers
    makes the processes differ, which :meth:`~pyro_vmm.inference.Trainer.train_epoch` detects.

    Arguments:
        ranks: the processes, and which rows are held here.
        network: the network of the rows; in training mode its dropout and BatchNorm layers take nothing but rows.
    """
    if ranks.size == 1:
        yield
        return
    layers = [module for module in network.modules() if module.training and _mixes_rows(module)]
    for layer in layers:
        layer.forward = partial(_drop if isinstance(layer, _DropoutNd) else _normalise, layer, ranks)
    try:
        with _Sites(ranks):
            yield
    finally:
        for layer in layers:
            del layer.forward


def draw(q: dist.TorchDistribution, ranks: Ranks) -> Tensor:
    """A draw for the rows held here, the last dimension of the batch shape, taken from a draw for all rows.

    It is reparameterised if the distribution allows it.
    """
    if ranks.size == 1:
        return q()
    dim = len(q.batch_shape) - 1
    whole = _widened(q, ranks, dim)
    value = whole().narrow(dim, ranks.held.start, q.batch_shape[dim])
    return q.take_draw(value, whole, ranks.held) if hasattr(q, "take_draw") else value


class _Sites(Messenger):
    """Draws the values of sites in the plate of the rows by :func:`draw`."""

    def __init__(self, ranks: Ranks):
        super().__init__()
        self.ranks = ranks

    def _pyro_sample(self, msg: dict) -> None:
        given = msg["done"] or msg["is_observed"] or msg["value"] is not None
        if not given and any(frame.name == PLATE for frame in msg["cond_indep_stack"]):
            msg["value"] = draw(msg["fn"], self.ranks)


def _widened(q: dist.TorchDistribution, ranks: Ranks, dim: int) -> dist.TorchDistribution:
    """A distribution of all rows of the minibatch; rows of other processes copy the first one held here."""
    if isinstance(q, torch.distributions.Independent):
        return _widened(q.base_dist, ranks, dim).to_event(q.reinterpreted_batch_ndims)
    parameters = {name: vars(q)[name] for name in q.arg_constraints if name in vars(q)}
    if parameters:
        wide = {name: _with_others(value, ranks, dim) for name, value in parameters.items()}
        cls = cast(Callable[..., dist.TorchDistribution], type(q))  # its parameters are not the base class's
        return cls(**wide, validate_args=False)
    if isinstance(q, torch.distributions.TransformedDistribution):
        return dist.TransformedDistribution(_widened(q.base_dist, ranks, dim), q.transforms, validate_args=False)
    raise ValueError(
        f"several processes can't draw from a {type(q).__name__}: expected a distribution whose arg_constraints name "
        "its parameters"
    )


def _with_others(value: Tensor, ranks: Ranks, dim: int = 0) -> Tensor:
    """Values of the rows held here, along a dimension, between copies of the first one in place of others' rows."""
    first = value.narrow(dim, 0, 1).detach()
    before, after = ranks.held.start, ranks.bounds[-1] - ranks.held.stop
    others = [first.expand(*(n if d == dim else -1 for d in range(value.dim()))) for n in (before, after)]
    return torch.cat([others[0], value, others[1]], dim)


def _mixes_rows(module: nn.Module) -> bool:
    """Whether a layer is dropout or BatchNorm; torch's synchronised BatchNorm needs no help."""
    return isinstance(module, _DropoutNd | _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)


def _by_row(x: Tensor, ranks: Ranks) -> Tensor:
    """The rows held here, (m, ...), or each of them several times, (S m, ...), as (S, m, ...)."""
    return x.unflatten(0, (-1, ranks.held.stop - ranks.held.start))


def _drop(layer: _DropoutNd, ranks: Ranks, x: Tensor) -> Tensor:
    """Dropout of rows (m, ...) or (S m, ...), with their part of the random numbers of all rows."""
    whole = _with_others(_by_row(x, ranks), ranks, 1)
    dropped = type(layer).forward(layer, whole.flatten(0, 1)).unflatten(0, whole.shape[:2])
    return dropped[:, ranks.held].flatten(0, 1)


def _normalise(layer: _BatchNorm, ranks: Ranks, x: Tensor) -> Tensor:
    """BatchNorm of x (m, C, ...) or (S m, C, ...), with the mean and variance of all rows, not only of those here."""
    n = ranks.bounds[-1] * len(_by_row(x, ranks)) * x[0, 0].numel()
    if n == 1:
        return type(layer).forward(layer, x)  # it raises an error
    over = [0, *range(2, x.dim())]
    every = _gather(ranks, torch.stack([x.mean(over), x.var(over, correction=0)]))  # (ranks, 2, C)
    bounds = x.new_tensor(ranks.bounds)
    shares = (bounds.diff() / bounds[-1])[:, None]
    mean = (shares * every[:, 0]).sum(0)
    variance = (shares * (every[:, 1] + (every[:, 0] - mean).square())).sum(0)
    if layer.track_running_stats:
        _remember(layer, mean, n / (n - 1) * variance)
    shape = (-1, *(1 for _ in over[1:]))
    scale = (variance + layer.eps).rsqrt()
    scale = scale if layer.weight is None else layer.weight * scale
    normalised = (x - mean.view(shape)) * scale.view(shape)
    return normalised if layer.bias is None else normalised + layer.bias.view(shape)


@torch.no_grad()
def _remember(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics, as the layer itself would."""
    mean_so_far, variance_so_far = layer.running_mean, layer.running_var
    assert layer.num_batches_tracked is not None and mean_so_far is not None and variance_so_far is not None
    layer.num_batches_tracked.add_(1)
    momentum = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    mean_so_far.mul_(1 - momentum).add_(momentum * mean)
    variance_so_far.mul_(1 - momentum).add_(momentum * variance)


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum over processes, too."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        together(distributed.all_reduce, total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def _gather(ranks: Ranks, tensor: Tensor) -> Tensor:
    """The tensor of every process, (ranks, ...), differentiable."""
    every = tensor.new_zeros(ranks.size, *tensor.shape)
    every[ranks.rank] = tensor
    return _Sum.apply(every)
