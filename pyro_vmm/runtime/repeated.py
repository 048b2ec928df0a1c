"""A differentiable function, such as a term of another package's loss, that is recorded once and then repeated."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyro_vmm.runtime.captured import attributes, describe, same
from pyro_vmm.runtime.exclusive import exclusive
from pyro_vmm.runtime.randomness import rng_state, set_rng_state

Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]


class Passes(NamedTuple):
    """A recorded function.

    Arguments:
        forward: the function's arguments -> what it returns, and then what ``backward`` needs.
        backward: the latter, and the gradient of the first output -> those of the first argument and the parameters.
        n_outputs: the number of tensors that the function returns.
        parameters: the parameters that the first output depends on.
    """

    forward: Function
    backward: Function
    n_outputs: int
    parameters: Sequence[Tensor]

    def __call__(self, *x: Tensor) -> Outputs:
        return _Repetition.apply(self, *x, *self.parameters)


class FunctionRecorder(Protocol):
    """Records functions, see :class:`~pyro_vmm.runtime.operations.Operations`."""

    patience: int

    def record_function(self, function: Function, x: Outputs, parameters: Sequence[Tensor]) -> Passes: ...


class _Repetition(torch.autograd.Function):
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


class Repeated:
    """A differentiable function, recorded for each shape of its arguments and repeated from then on.

    It runs as it is at first, ``patience`` times. Then it is recorded, and the next time the recording is compared with
    it: outputs, gradients and random numbers have to be the same, bit for bit. A function that can't be recorded always
    runs as it is. A recording knows numbers by their values: call :meth:`refresh` after a change.

    Arguments:
        function: tensors -> tensors, on a CPU. The first of them has gradients, by the first argument and by the
            parameters of a module. Its only lasting effect is on torch's random numbers.
        module: the module.
        recorder: records it; None for a function that always runs as it is.

    Attributes:
        obstacle: why it can't be recorded, or None.
    """

    def __init__(self, function: Function, module: nn.Module, recorder: FunctionRecorder | None):
        self.function, self.module, self.recorder = function, module, recorder
        self.obstacle: str | None = None
        self._seen: Counter[tuple] = Counter()
        self._passes: dict[tuple, Passes] = {}
        self._proven: set[tuple] = set()
        self._known: list = []

    def __call__(self, *x: Tensor) -> Outputs:
        if self.recorder is None or self.obstacle is not None:
            return self.function(*x)
        shapes = tuple((each.shape, each.dtype) for each in x)
        if shapes in self._proven:
            return self._passes[shapes](*x)
        self._seen[shapes] += 1
        if self._seen[shapes] <= self.recorder.patience:
            return self.function(*x)
        with exclusive():
            before = rng_state(x[0].device)
            try:
                if shapes in self._passes:
                    return self._prove(shapes, x)
                self._passes[shapes] = self.recorder.record_function(self.function, x, self._parameters())
                self._known = self._fingerprint()
            except RuntimeError as error:
                self.obstacle = describe(error)
            set_rng_state(before, x[0].device)
        return self.function(*x)

    def refresh(self) -> None:
        """Forget the recordings if a number or an object has changed since they were made."""
        if self._passes and self._fingerprint() != self._known:
            self._seen.clear()
            self._passes.clear()
            self._proven.clear()

    def _parameters(self) -> list[Tensor]:
        return [each for each in self.module.parameters() if each.requires_grad]

    def _fingerprint(self) -> list:
        return [*map(id, self._parameters()), *map(id, self.module.buffers()), *attributes(self.module)]

    def _prove(self, shapes: tuple, x: Outputs) -> Outputs:
        """Run the recording and the function; ``RuntimeError`` if they do not agree."""
        before, passes = rng_state(x[0].device), self._passes[shapes]
        found = []
        for function in (passes, self.function):
            set_rng_state(before, x[0].device)
            outputs = function(*x)
            arriving = outputs[0].detach()  # any numbers
            inputs = [x[0], *passes.parameters]
            gradients = torch.autograd.grad(outputs[0], inputs, arriving, retain_graph=True)
            found.append([*outputs, *gradients, *rng_state(x[0].device).values()])
        if not all(map(same, *found)):
            raise RuntimeError("a recorded function gives other numbers than the function")
        self._proven.add(shapes)
        return outputs
