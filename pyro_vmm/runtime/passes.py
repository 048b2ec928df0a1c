"""A recorded function as a node of autograd."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pyro_vmm.runtime.recorder import Outputs


class Passes(NamedTuple):
    """A recorded function.

    Arguments:
        forward: the function's arguments -> what it returns, and then what ``backward`` needs.
        backward: the latter, and the gradient of the first output -> those of the first argument and the parameters.
        n_outputs: the number of tensors that the function returns.
        parameters: the parameters that the first output depends on.
    """

    forward: Callable[..., Outputs]
    backward: Callable[..., Outputs]
    n_outputs: int
    parameters: Sequence[Tensor]

    def __call__(self, *x: Tensor) -> Outputs:
        return _Repetition.apply(self, *x, *self.parameters)


class _Repetition(Function):
    """A node of autograd that runs recorded passes."""

    @staticmethod
    def forward(ctx, passes: Passes, *tensors: Tensor) -> Outputs:
        n_arguments = len(tensors) - len(passes.parameters)
        found = passes.forward(*tensors[:n_arguments])
        outputs = found[: passes.n_outputs]
        ctx.passes, ctx.others = passes, n_arguments - 1
        ctx.save_for_backward(*found[passes.n_outputs :])
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_) -> tuple[Tensor | None, ...]:
        first, *of_parameters = ctx.passes.backward(*ctx.saved_tensors, gradient)
        return None, first, *[None] * ctx.others, *of_parameters
