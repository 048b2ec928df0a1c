"""What a row's result owes to the rest of its minibatch, where processes hold parts of it.

Experimental: several processes have been tested on CPUs (gloo), and never on GPUs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pyro_vmm.runtime.ranks import Ranks, together

# Functions that draw as many random numbers as their first argument has; those in place end in an underscore.
RANDOM = {
    torch.normal,
    torch.randn_like,
    torch.rand_like,
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
}
RANDOM_IN_PLACE = {Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.bernoulli_}


def whole_batch(ranks: Ranks) -> AbstractContextManager:
    """A context in which rows are treated as in one process that holds the whole current minibatch.

    The processes, which have the same random numbers, each draw those of the whole minibatch and use their own rows':
    the noise of reparameterised normals, and dropout. BatchNorm's statistics are those of the whole minibatch. A tensor
    is taken to have a row for each of the minibatch's if it has as many as are held here; so whatever else is random
    stays outside of this context.
    """
    return nullcontext() if ranks.size == 1 else _WholeBatch(ranks)


class _WholeBatch(TorchFunctionMode):
    """Steps in for the functions that mix rows, whoever calls them: there is no layer to replace."""

    def __init__(self, ranks: Ranks):
        super().__init__()
        self.ranks = ranks

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func in RANDOM and self._has_rows(args):
            return func(*map(self._widened, args), **kwargs)[self.ranks.held]
        if func in RANDOM_IN_PLACE and self._has_rows(args):
            return args[0].copy_(func(*map(self._widened, args), **kwargs)[self.ranks.held])
        return func(*args, **kwargs)

    def _has_rows(self, args: tuple) -> bool:
        held = self.ranks.held.stop - self.ranks.held.start
        return bool(args) and isinstance(args[0], Tensor) and args[0].dim() > 0 and len(args[0]) == held

    def _widened(self, value):
        """A tensor of the rows held here, with zeros for the rows of others; anything else as it is."""
        if not self._has_rows((value,)):
            return value
        held, total, others = self.ranks.held, self.ranks.bounds[-1], value.shape[1:]
        return torch.cat([value.new_zeros(held.start, *others), value, value.new_zeros(total - held.stop, *others)])

    def _batch_norm(
        self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ) -> Tensor:
        """``F.batch_norm`` of x (m, C, ...), with the mean and variance of all rows, not only of those held here."""
        n = self.ranks.bounds[-1] * x[0, 0].numel()
        if not training or n == 1:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        over = [0, *range(2, x.dim())]
        every = _gather(self.ranks, torch.stack([x.mean(over), x.var(over, correction=0)]))  # (ranks, 2, C)
        bounds = x.new_tensor(self.ranks.bounds)
        shares = (bounds.diff() / bounds[-1])[:, None]
        mean = (shares * every[:, 0]).sum(0)
        variance = (shares * (every[:, 1] + (every[:, 0] - mean).square())).sum(0)
        if running_mean is not None:
            with torch.no_grad():
                running_mean.mul_(1 - momentum).add_(momentum * mean)
                running_var.mul_(1 - momentum).add_(momentum * n / (n - 1) * variance)
        shape = (-1, *(1 for _ in over[1:]))
        scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
        normalized = (x - mean.view(shape)) * scale.view(shape)
        return normalized if bias is None else normalized + bias.view(shape)


class _Sum(torch.autograd.Function):
    """The sum over processes, of which the gradient is the sum over processes too."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        together(dist.all_reduce, total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def _gather(ranks: Ranks, tensor: Tensor) -> Tensor:
    """The tensor of every process, (ranks, ...), differentiable."""
    every = tensor.new_zeros(ranks.size, *tensor.shape)
    every[ranks.rank] = tensor
    return _Sum.apply(every)
