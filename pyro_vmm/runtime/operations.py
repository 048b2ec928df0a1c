"""Record the operations of a training step on a CPU, to repeat them without Python's models and without autograd.

A step of small networks spends a third of its time on Pyro's messages, on distributions that it makes anew, and on
autograd's bookkeeping. All of that comes to the same list of torch's operations at every step. The list is noted once
and repeated: the numbers are those of the step, bit for bit.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vmm.runtime.graphs import Outputs, Replay, Step

aten = torch.ops.aten
# They return the tensor that they take, cut off from autograd. A replay has no autograd.
_SAME = (aten.detach.default, aten.alias.default)
_PLAIN = (bool, int, float, str, type(None))
_KNOWN = {__name__.partition(".")[0], "torch", "pyro", "numpy", "builtins", "collections"}
# A recording takes as long as it saves in some fifteen steps, and ends when components leave. What has lasted for that
# many steps is likely to last for as many again.
PATIENCE = 16
_any_size: ContextVar[bool] = ContextVar("any_size", default=False)


@contextmanager
def of_any_size() -> Iterator[None]:
    """A context for operations whose results have a size that depends on values, such as ``nonzero``.

    It promises that what follows is the same for every size, so that a step can be recorded.
    """
    token = _any_size.set(True)
    try:
        yield
    finally:
        _any_size.reset(token)


class Operations:
    """The recorder of steps on a CPU, see :class:`~pyro_vmm.runtime.graphs.Graphs`.

    Arguments:
        patience: the number of steps before a recording.
    """

    rehearses = False
    follows_rates = True
    to_be_proven = True

    def __init__(self, patience: int = PATIENCE):
        self.patience = patience

    def rehearse(self, step: Step, x: Tensor) -> Outputs:
        return step(x)

    def record(self, step: Step, x: Tensor, groups: Sequence[dict]) -> tuple[Outputs, Replay]:
        tape = _Tape(groups)
        with tape:
            outputs = step(x)
        return outputs, tape.replay(outputs)


def consists_of_known_code(module: torch.nn.Module) -> bool:
    """Whether all code of a module, as far as its attributes tell, is this package's, torch's and Pyro's.

    Such a module does the same operations at every step, whatever Python variables outside of it hold.
    """
    for each in module.modules():
        hooks = each._forward_hooks, each._forward_pre_hooks, each._backward_hooks, each._backward_pre_hooks
        if any(hooks) or not _is_known(type(each)) or not _is_known(vars(each)):
            return False
    return True


def _is_known(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_known, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_known, value))
    if isinstance(value, partial):
        return all(map(_is_known, (value.func, value.args, value.keywords)))
    if isinstance(value, MethodType):
        return all(map(_is_known, (value.__func__, value.__self__)))
    named = value if isinstance(value, type | FunctionType) else type(value)
    return (named.__module__ or "").partition(".")[0] in _KNOWN


class _Text(str):
    """Text of a program."""

    __repr__ = str.__str__


class _Name(_Text):
    """The name of a variable of a program."""


class _Call(NamedTuple):
    """An operation, the arguments it takes, with names in place of tensors, and the names of its results."""

    function: Any
    args: tuple
    kwargs: dict
    results: tuple[_Name, ...]
    several: bool

    @property
    def names(self) -> list[_Name]:
        """The names in the arguments, lists of tensors included."""
        found: list[_Name] = []
        map_aggregate((self.args, self.kwargs), lambda value: found.append(value) if isinstance(value, _Name) else None)
        return found

    @property
    def acts(self) -> bool:
        """Whether it does more than to return a result: it changes a tensor, or draws random numbers."""
        return self.function._schema.is_mutable or torch.Tag.nondeterministic_seeded in self.function.tags

    def line(self, function: _Name) -> str:
        """The line of a program that calls ``function`` in place of the operation."""
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        results = ", ".join(self.results) + ("," if self.several else "")
        return f"{results} = {function}({', '.join(given)})" if self.results else f"{function}({', '.join(given)})"


class _Tape(TorchDispatchMode):
    """Notes the operations below autograd that run in this context.

    Arguments:
        groups: the optimisers' groups of parameters.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would load its compiler, for a second, to keep it out of this class

    def __init__(self, groups: Sequence[dict]):
        super().__init__()
        self.groups, self.steps_of_adam = groups, 0
        self.calls: list[_Call] = []
        # What the program finds: the tensors from before the step, the operations, and what is no plain number.
        self.given: dict[str, Any] = {"inf": math.inf, "nan": math.nan, "groups": groups}
        # A tensor leaves this dictionary as it leaves memory: a recording needs no more memory than a step.
        self.names = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not _any_size.get() and _sized_by_values(func, args):
            raise RuntimeError(f"the size of what {func.name()} returns depends on values")
        noted, options = map_aggregate(args, self._noted), dict(map_aggregate(kwargs, self._noted))
        result = func(*args, **kwargs)
        if func.namespace == "profiler":
            return result
        if func in _SAME:
            self.names[result] = noted[0]
            return result
        if func is aten.lift_fresh.default:  # a number of Python's, which what follows may change in place
            self.calls.append(
                _Call(aten.clone.default, (self._given(result.clone()),), {}, (self._result(result),), False)
            )
            return result
        if func is aten._fused_adam_.default:
            options["lr"] = self._rate(args[0][0])
        several = isinstance(result, tuple | list)
        results = tuple(result) if several else () if result is None else (result,)
        if not all(each is None or isinstance(each, Tensor) for each in results):
            raise RuntimeError(f"{func.name()} takes a number out of a tensor")
        known = all(each is None or each in self.names for each in results)  # an operation in place, or without result
        names = () if known else tuple(map(self._result, results))
        self.calls.append(_Call(func, noted, options, names, several))
        return result

    def _noted(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value not in self.names:
                self.names[value] = self._given(value)
            return self.names[value]
        return value if isinstance(value, _PLAIN) else self._given(value)

    def _given(self, value: Any) -> _Name:
        name = _Name(f"given_{len(self.given)}")
        self.given[name] = value
        return name

    def _result(self, value: Tensor | None) -> _Name:
        if value is None:
            return _Name("_")
        name = _Name(f"t{len(self.calls)}_{len(self.names)}")
        self.names[value] = name
        return name

    def _rate(self, parameter: Tensor) -> _Text:
        self.steps_of_adam += 1
        found = [i for i, group in enumerate(self.groups) if any(each is parameter for each in group["params"])]
        return _Text(f"groups[{found[0]}]['lr']")

    def replay(self, outputs: Outputs) -> Replay:
        """A function that runs the operations on the present values of the given tensors, and returns the outputs."""
        if self.steps_of_adam != len(self.groups):
            raise RuntimeError("an optimiser is not a fused Adam")
        returned = [self.names[each] for each in outputs]
        exec(self._program(returned), self.given)
        return torch.no_grad()(self.given["replay"])

    def _program(self, returned: Sequence[_Name]) -> str:
        """The operations as the text of a function; one that only makes an unused tensor is left out."""
        read, kept, lines = set(returned), set(returned), []
        for call in reversed(self.calls):
            if not (call.acts or read.intersection(call.results)):
                continue
            unread = {*call.names, *call.results} - kept - self.given.keys()
            if unread:  # for their memory
                lines.append(f"del {', '.join(sorted(unread))}")
            kept |= unread
            read.update(call.names)
            lines.append(call.line(self._operation(call.function)))
        body = [*reversed(lines), f"return {', '.join(returned)},"]
        return "def replay():\n" + "\n".join(f"    {line}" for line in body)

    def _operation(self, function: Any) -> _Name:
        """The name of an operation, for its entry into torch: a call of the Python object around it takes longer."""
        name = _Name(function.name().replace("::", "_").replace(".", "_"))
        self.given.setdefault(name, function._op)
        return name


def _sized_by_values(function: Any, args: Sequence) -> bool:
    """Whether the size of the result depends on values; that of indexing does only with a mask."""
    if torch.Tag.dynamic_output_shape not in function.tags:
        return False
    if function is not aten.index.Tensor:
        return True
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
