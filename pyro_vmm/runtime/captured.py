"""A training step or a function that is recorded once and then replayed: Python and Pyro run once, not at every call.

On a CPU :mod:`~pyro_vmm.runtime.operations` records. On a GPU CUDA graphs do: that is experimental, has never run on
one yet, and is off unless ``capture`` asks for it.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmm.runtime.exclusive import exclusive
from pyro_vmm.runtime.randomness import rng_state, set_rng_state
from pyro_vmm.runtime.recorder import Outputs, Recorder, Run

# An epoch has two shapes of minibatch: full ones, and the last. Without a limit, ever new shapes would record forever.
MOST_SHAPES = 4
# Error messages skip lines of code in these folders: they don't show the model's own line.
LIBRARIES = tuple(folder for module in (torch, pyro) for folder in module.__path__)


class _State(NamedTuple):
    """Copies of all that a run changes: of tensors, of the optimisers' moments, and of the random numbers' state."""

    tensors: list[tuple[Tensor, Tensor]]
    moments: list[dict[Tensor, dict[str, tuple[Tensor, Tensor]]]]
    random_numbers: dict


class Captured:
    """A training step, or a differentiable function, recorded for each shape of its arguments and then replayed.

    The first calls of a shape, as many as the recorder's ``patience``, run eagerly. They are rehearsals: they make what
    is made lazily (Adam's moments, the workspaces of cuBLAS), and find what can't be recorded while it can still be
    undone. The next call is recorded. At the one after it a recorder may ask for a proof: the recording is replayed,
    all is undone, the step runs eagerly, and both must have done the same, bit for bit, gradients included. From then
    on the recording is replayed. So a step trains on no minibatch twice, and the numbers, random ones included, are
    those of the eager step. The short last minibatch has its own recording: run eagerly on a GPU, it would take as
    long as ten replays of a full one.

    A recording knows tensors by their addresses and numbers by their values: call :meth:`refresh` after a change. It
    does not watch tensors in plain attributes, which may be outputs: register an input as a buffer.

    What can't be recorded runs eagerly.

    Arguments:
        run: tensors -> tensors. A step trains: it changes tensors of ``changes`` and the states of the optimisers. A
            function changes none; its first result has gradients, by its first argument and the module's parameters.
            Either may draw random numbers of torch.
        module: the module that it uses.
        recorder: records it; None for what always runs eagerly.
        optimizers: returns the optimisers that it uses at present.
        changes: the part of the module whose tensors it changes; None for no part. Its tensors are copied while a
            recording is made and proven.
        otherwise: what to do if it can't be recorded: run it eagerly ("run"), warn of that ("warn"), or raise
            ``RuntimeError`` ("raise").

    Attributes:
        obstacle: why it runs eagerly although it should be recorded; None if it doesn't.
    """

    def __init__(
        self,
        run: Run,
        module: nn.Module,
        recorder: Recorder | None,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]] = tuple,
        changes: nn.Module | None = None,
        otherwise: Literal["run", "warn", "raise"] = "run",
    ):
        self.run, self.module, self.recorder, self.optimizers = run, module, recorder, optimizers
        self.changes = nn.Identity() if changes is None else changes
        self.otherwise = otherwise
        self.obstacle: str | None = None
        self._seen: Counter[tuple] = Counter()
        self._replays: dict[tuple, Run] = {}
        self._proven: set[tuple] = set()
        self._known: list = []

    def __call__(self, *x: Tensor) -> Outputs:
        """Run on these arguments; the tensors returned hold until the next call."""
        if self.recorder is None or self.obstacle is not None:
            return self.run(*x)
        form = tuple((each.shape, each.stride(), each.dtype, each.requires_grad) for each in x)
        if form in self._proven:
            return self._replays[form](*x)
        if form not in self._seen and len(self._seen) == MOST_SHAPES:
            return self.run(*x)
        self._seen[form] += 1
        if self._seen[form] > self.recorder.patience:
            return self._try(self._prove if form in self._replays else self._record, form, x)
        return self._try(self._rehearse, form, x) if self.recorder.rehearses else self.run(*x)

    def refresh(self) -> None:
        """Forget the recordings if a tensor has been replaced, or a number changed, since they were made."""
        if self._replays and self._fingerprint() != self._known:
            self.reset()

    def reset(self) -> None:
        """Forget the recordings, and free their memory."""
        if self._seen:
            self._seen.clear()
            self._replays.clear()
            self._proven.clear()
            for optimizer in self.optimizers():
                optimizer.zero_grad(set_to_none=True)  # gradients lie in the memory of a recording

    def _rehearse(self, recorder: Recorder, form: tuple, x: Outputs, before: _State) -> Outputs:
        return recorder.rehearse(self.run, x)

    def _record(self, recorder: Recorder, form: tuple, x: Outputs, before: _State) -> Outputs:
        groups = [group for optimizer in self.optimizers() for group in optimizer.param_groups]
        outputs, self._replays[form] = recorder.record(self.run, x, groups, self._parameters())
        self._known = self._fingerprint()
        if not recorder.to_be_proven:
            self._proven.add(form)
        if outputs is not None:
            return outputs
        self._restore(before)  # a function runs again, in the graph of its caller
        return self.run(*x)

    def _prove(self, recorder: Recorder, form: tuple, x: Outputs, before: _State) -> Outputs:
        """Replay the recording, and run from the same state; ``RuntimeError`` if they do not agree."""
        found = []
        for run in (self._replays[form], self.run):
            self._restore(before)
            outputs = run(*x)
            found.append([each.clone() for each in (*outputs, *self._gradients(outputs, x), *self._changed())])
        if len(found[0]) != len(found[1]) or not all(map(same, *found)):
            raise RuntimeError("a recording gives other numbers than what it records")
        self._proven.add(form)
        return outputs

    def _try(self, what: Callable[..., Outputs], form: tuple, x: Outputs) -> Outputs:
        """Rehearse, record or prove; if that fails, restore the earlier state and run eagerly."""
        with exclusive():
            before = self._state()
            try:
                return what(self.recorder, form, x, before)
            except RuntimeError as error:
                self._restore(before)
                self.reset()
                reason = f"the training step can't be recorded: {describe(error)}"
                if self.otherwise == "raise":
                    raise RuntimeError(f"{reason}. capture='auto' trains eagerly then") from error
                outputs = self.run(*x)  # its own errors have nothing to do with recording
                self.obstacle = reason
                if self.otherwise == "warn":
                    message = f"{reason}. It runs eagerly, which is slower; capture=False does not warn"
                    warnings.warn(message, stacklevel=3)
                return outputs

    def _device(self) -> torch.device:
        return next(iter(_tensors(self.module))).device

    def _parameters(self) -> list[Tensor]:
        return [each for each in self.module.parameters() if each.requires_grad]

    def _gradients(self, outputs: Outputs, x: Outputs) -> list[Tensor]:
        """The gradients of a function's first result, weighted by any numbers; none of a step."""
        if not outputs[0].requires_grad:
            return []
        inputs, weights = [x[0], *self._parameters()], outputs[0].detach()
        found = torch.autograd.grad(outputs[0], inputs, weights, retain_graph=True, allow_unused=True)
        return [each for each in found if each is not None]

    def _changed(self) -> list[Tensor]:
        """All that a run changes."""
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
        """All that a recording fixes: addresses, numbers, and the attributes of each module."""
        tensors, numbers = list(_tensors(self.module)), []
        left = {"params", "lr"} if self.recorder is not None and self.recorder.follows_rates else {"params"}
        for optimizer in self.optimizers():
            tensors += [value for state in optimizer.state.values() for value in state.values()]
            numbers += [value for group in optimizer.param_groups for name, value in group.items() if name not in left]
        attributes = [_comparable(value) for each in self.module.modules() for value in vars(each).values()]
        return [(tensor.data_ptr(), tensor.requires_grad) for tensor in tensors] + numbers + attributes


class _Same:
    """An object that equals itself alone; it lives as long as this, so that no other one gets its address."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = object.__hash__


def _comparable(value: Any) -> Any:
    """An attribute to compare: numbers and texts by value, lists and dicts by what they hold, the rest by identity."""
    if isinstance(value, Tensor | Distribution):
        return None  # a module may keep its last output
    if isinstance(value, dict):
        return [(name, _comparable(each)) for name, each in value.items()]
    if isinstance(value, list | tuple):
        return [_comparable(each) for each in value]
    return value if isinstance(value, bool | int | float | str) else _Same(value)


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(), module.buffers())


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
