"""A training step that is recorded once and then replayed: Python and Pyro run once, not at every step.

Experimental: it has never run on a GPU yet, and is off unless ``capture`` asks for it.
"""

import copy
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn

from pyro_vmm.runtime.graphs import Graphs, Outputs, Step
from pyro_vmm.runtime.randomness import rng_state, set_rng_state

# An epoch has two shapes of minibatch: full ones, and the last. Without a limit, ever new shapes would record forever.
MOST_SHAPES = 4
# Error messages skip lines of code in these folders: they don't show the model's own line.
LIBRARIES = tuple(folder for module in (torch, pyro) for folder in module.__path__)


class Captured:
    """A training step, recorded for each shape of minibatch and replayed from then on.

    The first minibatch of a shape runs eagerly. That is a rehearsal: it makes what is made lazily (Adam's moments, the
    workspaces of cuBLAS), and finds what can't be recorded while it can still be undone. At the second minibatch the
    step is recorded, which computes nothing, and replayed. So it trains on no minibatch twice, and the numbers, random
    ones included, are those of the eager step. The short last minibatch has its own recording: eagerly it would take as
    long as ten full ones.

    A recording knows tensors by their addresses and numbers by their values: call :meth:`refresh` after a change.

    A step that can't be recorded runs eagerly, and a warning says why.

    Arguments:
        step: minibatch (M, ...) -> tensors. It changes only the module's tensors, the optimisers' states, and the state
            of torch's random numbers.
        module: the module that it trains.
        optimizers: returns the optimisers that it uses at present.
        graphs: the recorder; None for a step that always runs eagerly.
        insist: raise ``RuntimeError`` if the step can't be recorded, instead of running it eagerly.

    Attributes:
        obstacle: why the step runs eagerly although it should be recorded; None if it doesn't.
    """

    def __init__(
        self,
        step: Step,
        module: nn.Module,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        graphs: Graphs | None,
        insist: bool = False,
    ):
        self.step, self.module, self.optimizers = step, module, optimizers
        self.graphs, self.insist, self.obstacle = graphs, insist, None
        self._inputs: dict[tuple, Tensor] = {}
        self._replays: dict[tuple, Callable[[], Outputs]] = {}
        self._known: list = []

    def __call__(self, x: Tensor) -> Outputs:
        """One step on a minibatch (M, ...); the tensors returned hold until the next call."""
        graphs = self.graphs
        if graphs is None or self.obstacle is not None:
            return self.step(x)
        shape = (*x.shape, x.dtype)
        if shape not in self._inputs:
            if len(self._inputs) == MOST_SHAPES:
                return self.step(x)
            return self._try(x, lambda: self._rehearse(graphs, x, shape))
        self._inputs[shape].copy_(x)
        if shape not in self._replays:
            return self._try(x, lambda: self._record(graphs, shape))
        return self._replays[shape]()

    def refresh(self) -> None:
        """Forget the recordings if a tensor has been replaced, or a number changed, since they were made."""
        if self._inputs and self._fingerprint() != self._known:
            self.reset()

    def reset(self) -> None:
        """Forget the recordings, and free their memory."""
        if self._inputs:
            self._inputs.clear()
            self._replays.clear()
            self.module.zero_grad(set_to_none=True)  # gradients lie in the memory of a recording

    def _rehearse(self, graphs: Graphs, x: Tensor, shape: tuple) -> Outputs:
        fixed = x.clone()
        outputs = graphs.rehearse(self.step, fixed)
        self._inputs[shape], self._known = fixed, self._fingerprint()
        return outputs

    def _record(self, graphs: Graphs, shape: tuple) -> Outputs:
        with self._capturable():
            self._replays[shape] = graphs.record(self.step, self._inputs[shape])
        self._known = self._fingerprint()
        return self._replays[shape]()

    def _try(self, x: Tensor, what: Callable[[], Outputs]) -> Outputs:
        """Rehearse or record; if that fails, restore the earlier state and run the step eagerly."""
        before = self._state()
        try:
            return what()
        except RuntimeError as error:
            self.reset()
            self._restore(before)
            reason = f"the training step can't be recorded as a CUDA graph: {describe(error)}"
            if self.insist:
                raise RuntimeError(f"{reason}. capture='auto' trains eagerly then") from error
            outputs = self.step(x)  # its own errors have nothing to do with recording
            self.obstacle = reason
            warnings.warn(f"{reason}. It runs eagerly, which is slower; capture=False does not warn", stacklevel=4)
            return outputs

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """Set Adam's flag ``capturable`` for a recording alone: Adam needs it there, and warns of it in eager steps."""
        groups = [group for optimizer in self.optimizers() for group in optimizer.param_groups]
        before = [group["capturable"] for group in groups]
        try:
            for group in groups:
                group["capturable"] = True
            yield
        finally:
            for group, value in zip(groups, before, strict=True):
                group["capturable"] = value

    def _tensors(self) -> list[Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]

    def _device(self) -> torch.device:
        return self._tensors()[0].device

    def _state(self) -> tuple:
        tensors = [tensor.detach().clone() for tensor in self._tensors()]
        moments = [copy.deepcopy(optimizer.state_dict()) for optimizer in self.optimizers()]
        return tensors, moments, rng_state(self._device())

    @torch.no_grad()
    def _restore(self, state: tuple) -> None:
        tensors, moments, random_numbers = state
        for tensor, value in zip(self._tensors(), tensors, strict=True):
            tensor.copy_(value)
        for optimizer, remembered in zip(self.optimizers(), moments, strict=True):
            optimizer.load_state_dict(remembered)
        set_rng_state(random_numbers, self._device())

    def _fingerprint(self) -> list:
        """All that a recording fixes: addresses, numbers, and the objects that are attributes of each module."""
        tensors, numbers = self._tensors(), []
        for optimizer in self.optimizers():
            tensors += [value for state in optimizer.state.values() for value in state.values()]
            numbers += [value for group in optimizer.param_groups for name, value in group.items() if name != "params"]
        for module in self.module.modules():
            for value in vars(module).values():
                if not isinstance(value, Tensor):  # a module may keep its last output
                    numbers.append(value if isinstance(value, bool | int | float | str) else id(value))
        return [tensor.data_ptr() for tensor in tensors] + numbers


def describe(error: BaseException) -> str:
    """An error in a line, with the last line of code outside of torch and Pyro."""
    text = str(error).strip().splitlines()
    text = text[0] if text else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(LIBRARIES)]
    if not frames:
        return text
    last = frames[-1]
    return f"{text} (at {Path(last.filename).name}, line {last.lineno}: {last.line})"
