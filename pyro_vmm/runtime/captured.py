"""A training step that is recorded once and then replayed: Python and Pyro run once, not at every step.

On a CPU :mod:`~pyro_vmm.runtime.operations` records. On a GPU CUDA graphs do: that is experimental, has never run on
one yet, and is off unless ``capture`` asks for it.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmm.runtime.randomness import rng_state, set_rng_state
from pyro_vmm.runtime.recorder import Outputs, Recorder, Replay, Step

# An epoch has two shapes of minibatch: full ones, and the last. Without a limit, ever new shapes would record forever.
MOST_SHAPES = 4
# Error messages skip lines of code in these folders: they don't show the model's own line.
LIBRARIES = tuple(folder for module in (torch, pyro) for folder in module.__path__)


class _State(NamedTuple):
    """Copies of all that a step changes: of tensors, of the optimisers' moments, and of the random numbers' state."""

    tensors: list[tuple[Tensor, Tensor]]
    moments: list[dict[Tensor, dict[str, tuple[Tensor, Tensor]]]]
    random_numbers: dict


class Captured:
    """A training step, recorded for each shape of minibatch and replayed from then on.

    The first minibatches of a shape, as many as the recorder's ``patience``, run eagerly. They are rehearsals: they
    make what is made lazily (Adam's moments, the workspaces of cuBLAS), and find what can't be recorded while it can
    still be undone. The step is recorded at the next minibatch. At the one after it a recorder may ask for a proof: the
    recording is replayed, all is undone, the step runs eagerly, and both must have done the same, bit for bit. From
    then on the recording is replayed. So the step trains on no minibatch twice, and the numbers, random ones included,
    are those of the eager step. The short last minibatch has its own recording: on a GPU it would take as long as ten
    full ones without.

    A recording knows tensors by their addresses and numbers by their values: call :meth:`refresh` after a change.

    A step that can't be recorded runs eagerly.

    Arguments:
        step: minibatch (M, ...) -> tensors. It changes only the module's tensors, the optimisers' states, and the state
            of torch's random numbers.
        module: the module that it trains.
        optimizers: returns the optimisers that it uses at present.
        recorder: records the step; None for a step that always runs eagerly.
        otherwise: what to do if the step can't be recorded: run it eagerly ("run"), warn of that ("warn"), or raise
            ``RuntimeError`` ("raise").
        changes: the part of the module whose tensors the step changes; None for all of it. Its tensors are copied
            while a recording is made and proven.

    Attributes:
        obstacle: why the step runs eagerly although it should be recorded; None if it doesn't.
    """

    def __init__(
        self,
        step: Step,
        module: nn.Module,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        recorder: Recorder | None,
        otherwise: Literal["run", "warn", "raise"] = "warn",
        changes: nn.Module | None = None,
    ):
        self.step, self.module, self.optimizers = step, module, optimizers
        self.recorder, self.otherwise, self.obstacle = recorder, otherwise, None
        self.changes = module if changes is None else changes
        self._inputs: dict[tuple, Tensor] = {}
        self._seen: Counter[tuple] = Counter()
        self._replays: dict[tuple, Replay] = {}
        self._proven: set[tuple] = set()
        self._known: list = []

    def __call__(self, x: Tensor) -> Outputs:
        """One step on a minibatch (M, ...); the tensors returned hold until the next call."""
        recorder = self.recorder
        if recorder is None or self.obstacle is not None:
            return self.step(x)
        shape = (*x.shape, x.dtype)
        if shape not in self._seen and len(self._seen) == MOST_SHAPES:
            return self.step(x)
        self._seen[shape] += 1
        if self._seen[shape] <= recorder.patience:
            return self._try(x, lambda _: recorder.rehearse(self.step, x)) if recorder.rehearses else self.step(x)
        if shape not in self._inputs:
            self._inputs[shape] = x.clone()
        self._inputs[shape].copy_(x)
        if shape not in self._replays:
            return self._try(x, lambda _: self._record(recorder, shape))
        if recorder.to_be_proven and shape not in self._proven:
            return self._try(x, lambda before: self._prove(shape, before))
        return self._replays[shape]()

    def refresh(self) -> None:
        """Forget the recordings if a tensor has been replaced, or a number changed, since they were made."""
        if self._replays and self._fingerprint() != self._known:
            self.reset()

    def reset(self) -> None:
        """Forget the recordings, and free their memory."""
        if self._seen:
            self._inputs.clear()
            self._seen.clear()
            self._replays.clear()
            self._proven.clear()
            for optimizer in self.optimizers():
                optimizer.zero_grad(set_to_none=True)  # gradients lie in the memory of a recording

    def _record(self, recorder: Recorder, shape: tuple) -> Outputs:
        groups = [group for optimizer in self.optimizers() for group in optimizer.param_groups]
        outputs, self._replays[shape] = recorder.record(self.step, self._inputs[shape], groups)
        self._known = self._fingerprint()
        return outputs

    def _prove(self, shape: tuple, before: _State) -> Outputs:
        """Repeat the step by its recording, and run it from the same state; ``RuntimeError`` if they do not agree."""
        outputs = self._replays[shape]()
        repeated = [tensor.clone() for tensor in (*outputs, *self._changed())]
        self._restore(before)
        outputs = self.step(self._inputs[shape])
        if not all(map(same, repeated, (*outputs, *self._changed()))):
            raise RuntimeError("a recorded step gives other numbers than the step")
        self._proven.add(shape)
        return outputs

    def _try(self, x: Tensor, what: Callable[[_State], Outputs]) -> Outputs:
        """Rehearse, record or prove; if that fails, restore the earlier state and run the step eagerly."""
        before = self._state()
        try:
            return what(before)
        except RuntimeError as error:
            self._restore(before)
            self.reset()
            reason = f"the training step can't be recorded: {describe(error)}"
            if self.otherwise == "raise":
                raise RuntimeError(f"{reason}. capture='auto' trains eagerly then") from error
            outputs = self.step(x)  # its own errors have nothing to do with recording
            self.obstacle = reason
            if self.otherwise == "warn":
                warnings.warn(f"{reason}. It runs eagerly, which is slower; capture=False does not warn", stacklevel=4)
            return outputs

    def _device(self) -> torch.device:
        return next(iter(_tensors(self.module))).device

    def _changed(self) -> list[Tensor]:
        """All that a step changes."""
        states = [state for optimizer in self.optimizers() for state in optimizer.state.values()]
        moments = [value for state in states for value in state.values()]
        return [*_tensors(self.changes), *moments, *rng_state(self._device()).values()]

    def _state(self) -> _State:
        tensors = [(tensor, tensor.detach().clone()) for tensor in _tensors(self.changes)]
        moments = [
            {parameter: {name: (value, value.clone()) for name, value in state.items()} for parameter, state in every}
            for every in (optimizer.state.items() for optimizer in self.optimizers())
        ]
        return _State(tensors, moments, rng_state(self._device()))

    @torch.no_grad()
    def _restore(self, state: _State) -> None:
        """Give the same tensors their values back: a recording knows them by their addresses."""
        for tensor, value in state.tensors:
            tensor.copy_(value)
        for optimizer, moments in zip(self.optimizers(), state.moments, strict=True):
            optimizer.state.clear()
            for parameter, values in moments.items():
                optimizer.state[parameter] = {name: tensor.copy_(value) for name, (tensor, value) in values.items()}
        set_rng_state(state.random_numbers, self._device())

    def _fingerprint(self) -> list:
        """All that a recording fixes: addresses, numbers, and the objects that are attributes of each module."""
        tensors, numbers = list(_tensors(self.module)), []
        left = {"params", "lr"} if self.recorder is not None and self.recorder.follows_rates else {"params"}
        for optimizer in self.optimizers():
            tensors += [value for state in optimizer.state.values() for value in state.values()]
            numbers += [value for group in optimizer.param_groups for name, value in group.items() if name not in left]
        return [tensor.data_ptr() for tensor in tensors] + numbers + attributes(self.module)


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(), module.buffers())


def attributes(module: nn.Module) -> list:
    """The attributes of a module and its submodules: numbers and texts, and the identities of other objects."""
    values = [value for each in module.modules() for value in vars(each).values()]
    # A module may keep its last output.
    values = [value for value in values if not isinstance(value, Tensor | Distribution)]
    return [value if isinstance(value, bool | int | float | str) else id(value) for value in values]


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, bit for bit; a NaN is like another."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def describe(error: BaseException) -> str:
    """An error in a line, with the last line of code outside of torch and Pyro."""
    text = str(error).strip().splitlines()
    text = text[0] if text else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(LIBRARIES)]
    if not frames:
        return text
    last = frames[-1]
    return f"{text} (at {Path(last.filename).name}, line {last.lineno}: {last.line})"
