"""Record the operations of a training step on a CPU, to repeat them without Python's models and without autograd.

A step of small networks spends a third of its time on Pyro's messages, on distributions that it makes anew, and on
autograd's bookkeeping. All of that comes to the same list of torch's operations at every step. The list is noted once,
shortened (:mod:`~pyro_vmm.runtime.program`) and repeated: the numbers are those of the step, bit for bit.

So is a differentiable function in the loss of another package, see :mod:`~pyro_vmm.runtime.passes`.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vmm.runtime.passes import Passes
from pyro_vmm.runtime.program import Call, Name, Program, Text, names_in, variable
from pyro_vmm.runtime.recorder import Outputs, Run

aten = torch.ops.aten
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
    """The recorder of steps on a CPU, see :class:`~pyro_vmm.runtime.recorder.Recorder`.

    Arguments:
        patience: the number of steps before a recording.
    """

    rehearses = False
    follows_rates = True
    to_be_proven = True

    def __init__(self, patience: int = PATIENCE):
        self.patience = patience

    def rehearse(self, run: Run, x: Outputs) -> Outputs:
        return run(*x)

    def record(
        self, run: Run, x: Outputs, groups: Sequence[dict], parameters: Sequence[Tensor] = ()
    ) -> tuple[Outputs | None, Run]:
        tape = _Tape(groups)
        if x[0].requires_grad:
            x = (x[0].detach().requires_grad_(), *x[1:])
        # Checks of arguments read numbers.
        with _OneHot(), pyro.validation_enabled(False):
            arguments = [tape.argument(each) for each in x]
            with tape:
                outputs = run(*x)
            if not outputs[0].requires_grad:
                return outputs, tape.replay(arguments, outputs)
            ahead, weights = len(tape.calls), torch.ones_like(outputs[0])
            arriving = tape.argument(weights)
            with tape:
                found = torch.autograd.grad(outputs[0], [x[0], *parameters], weights, allow_unused=True)
        # Most parameters of a model of another package have no part in it.
        used = [i for i, gradient in enumerate(found[1:]) if gradient is not None]
        gradients = [gradient for gradient in found if gradient is not None]
        forward, backward = tape.passes(ahead, arguments, arriving, outputs, gradients)
        return None, Passes(forward, backward, len(outputs), [parameters[i] for i in used])


def consists_of_known_code(module: torch.nn.Module, also: Collection[str] = ()) -> bool:
    """Whether all code of a module, as far as its attributes tell, is this package's, torch's and Pyro's.

    Such a module does the same operations at every step, whatever Python variables outside of it hold.

    Arguments:
        module: the module.
        also: the names of further packages whose modules are known to do the same.
    """
    known = _KNOWN.union(also)
    for each in module.modules():
        hooks = each._forward_hooks, each._forward_pre_hooks, each._backward_hooks, each._backward_pre_hooks
        if any(hooks) or not _is_of(known, type(each)) or not _is_of(known, vars(each)):
            return False
    return True


def _is_of(packages: Collection[str], value: Any) -> bool:
    every = partial(_is_of, packages)
    if isinstance(value, dict):
        return all(map(every, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(every, value))
    if isinstance(value, partial):
        return all(map(every, (value.func, value.args, value.keywords)))
    if isinstance(value, MethodType):
        return all(map(every, (value.__func__, value.__self__)))
    named = value if isinstance(value, type | FunctionType) else type(value)
    return (named.__module__ or "").partition(".")[0] in packages


class _OneHot(TorchFunctionMode):
    """``one_hot`` without torch's look for the largest code, which no recording can hold."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.one_hot and len(args) == 2 and not kwargs:
            codes, n_classes = args
            return codes.new_zeros(*codes.shape, n_classes).scatter_(-1, codes.unsqueeze(-1), 1)
        return func(*args, **(kwargs or {}))


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
        self.calls: list[Call] = []
        # What the program finds: the tensors from before the step, the operations, and what is no plain number.
        self.given: dict[str, Any] = {"inf": math.inf, "nan": math.nan, "groups": groups}
        self.tensors: list[Name] = []
        self.objects: list[Name] = []
        # A tensor leaves this dictionary as it leaves memory: a recording needs no more memory than a step.
        self.names = WeakTensorKeyDictionary()
        # The name of the tensor that owns the memory of each; and of each piece of memory, by its present address.
        self.owners: dict[Name, Name] = {}
        self.memory: dict[int, Name] = {}
        # Each way to look at a piece of memory, as a tensor.
        self.views: dict[tuple, Name] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        if not _any_size.get() and _sized_by_values(func, args):
            raise RuntimeError(f"the size of what {func.name()} returns depends on values")
        noted, options = map_aggregate(args, self._noted), dict(map_aggregate(kwargs, self._noted))
        result = func(*args, **kwargs)
        if func is aten.lift_fresh.default:  # a number of Python's, which what follows may change in place
            number = self._given_tensor(result.clone())
            self.calls.append(Call(aten.clone.default, (number,), {}, (self._result(result, ()),)))
            return result
        if func is aten._fused_adam_.default:
            options["lr"] = self._rate(args[0][0])
        several = isinstance(result, tuple | list)
        results = tuple(result) if several else () if result is None else (result,)
        if not all(each is None or isinstance(each, Tensor) for each in results):
            raise RuntimeError(f"{func.name()} takes a number out of a tensor")
        changes = tuple(self.owners[name] for name in _changed(func, noted, options))
        if all(each is None or each in self.names for each in results):  # an operation in place, or without result
            self.calls.append(Call(func, noted, options, (), several, changes))
            return result
        taken = [name for name in names_in((noted, options)) if name in self.owners]
        if isinstance(result, Tensor) and not changes and (known := self._known_view(result, taken)):
            self.names[result] = known
            return result
        names = tuple(self._result(each, taken) for each in results)
        self.calls.append(Call(func, noted, options, names, several, changes, _copies(func, args, result)))
        return result

    def _noted(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.names[value] if value in self.names else self._given_tensor(value)
        return value if isinstance(value, _PLAIN) else self._given_object(value)

    def _given_tensor(self, value: Tensor) -> Name:
        name = Name(f"given_{len(self.given)}")
        self.given[name] = value
        self.tensors.append(name)
        self._own(name, value, self.memory.get(_address(value), name))
        return name

    def _given_object(self, value: Any) -> Name:
        for name in self.objects:
            if self.given[name] is value or (isinstance(value, torch.device) and self.given[name] == value):
                return name
        name = Name(f"given_{len(self.given)}")
        self.given[name] = value
        self.objects.append(name)
        return name

    def _result(self, value: Tensor | None, taken: Sequence[Name]) -> Name:
        """A name for a result of an operation that takes these tensors."""
        if value is None:
            return Name("_")
        name = Name(f"t{len(self.calls)}_{len(self.names)}")
        self._own(name, value, self._owner(value, taken) or name)
        return name

    def _own(self, name: Name, value: Tensor, owner: Name) -> None:
        self.names[value], self.owners[name] = name, owner
        self.memory[_address(value)] = owner
        self.views[(owner, *_view(value))] = name

    def _owner(self, value: Tensor, taken: Sequence[Name]) -> Name | None:
        """The owner of the memory of a result, if it is that of a tensor taken; the address may be of an old tensor."""
        owner = self.memory.get(_address(value))
        return owner if owner in {self.owners[name] for name in taken} else None

    def _known_view(self, value: Tensor, taken: Sequence[Name]) -> Name | None:
        """The name of a tensor that is the same part of the same memory as this result."""
        owner = self._owner(value, taken)
        return owner and self.views.get((owner, *_view(value)))

    def _rate(self, parameter: Tensor) -> Text:
        self.steps_of_adam += 1
        found = [i for i, group in enumerate(self.groups) if any(each is parameter for each in group["params"])]
        return Text(f"groups[{found[0]}]['lr']")

    def replay(self, arguments: Sequence[Name], outputs: Outputs) -> Run:
        """A function of the arguments that runs the operations on what the given tensors hold, and returns outputs."""
        if self.steps_of_adam != len(self.groups):
            raise RuntimeError("an optimiser is not a fused Adam")
        program, returned = self._shortened(self.calls, [self._noted(each) for each in outputs])
        return self._function(program, "replay", arguments, returned)

    def argument(self, value: Tensor) -> Name:
        """Make a tensor from before the operations an argument of the functions that repeat them."""
        name = Name(f"x{len(self.names)}")
        self._own(name, value, name)
        return name

    def passes(
        self, ahead: int, arguments: Sequence[Name], arriving: Name, outputs: Outputs, gradients: Sequence[Tensor]
    ) -> tuple[Run, Run]:
        """Two functions: the first ``ahead`` operations, and the others.

        The first takes the arguments, and returns the outputs and then all that the second takes: these tensors, and at
        last the gradient that arrives. The second returns the gradients.
        """
        outs: list[Name] = [self._noted(each) for each in outputs]
        returned: list[Name] = [self.names[each] for each in gradients]
        back = self.calls[ahead:]
        read = {*returned, *(name for call in back for name in call.names)}
        made = {name for call in back for name in call.results}
        between = sorted(read - made - self.given.keys() - {arriving})
        # What is copied may change before the second function runs.
        front = [call._replace(copies=False) for call in self.calls[:ahead]]
        forward, kept = self._shortened(front, [*outs, *between])
        same = dict(zip(between, kept[len(outs) :], strict=True))
        between = sorted(set(same.values()))
        backward, returned = self._shortened(
            [call.renamed(same) for call in back], [same.get(name, name) for name in returned]
        )
        return (
            self._function(forward, "forward", arguments, [*kept[: len(outs)], *between]),
            self._function(backward, "backward", [*between, arriving], returned),
        )

    def _shortened(self, calls: Sequence[Call], returned: Sequence[Name]) -> tuple[Program, list[Name]]:
        return Program(calls, self.owners, self.tensors, self.objects).shortened(returned)

    def _function(self, program: Program, name: str, arguments: Sequence[Name], returned: Sequence[Name]) -> Run:
        # For each operation its entry into torch: a call of the Python object around it takes longer.
        self.given.update((variable(call.function), call.function._op) for call in program.calls)
        with torch.no_grad():
            exec(program.text(returned, name, arguments), self.given)
        return torch.no_grad()(self.given[name])


def _address(tensor: Tensor) -> int:
    """What tells the memory of living tensors apart."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _view(tensor: Tensor) -> tuple:
    """How a tensor looks at its memory."""
    if tensor.layout is not torch.strided:
        return (id(tensor),)
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _changed(function: Any, args: Sequence, kwargs: Mapping[str, Any]) -> list[Name]:
    """The tensors that an operation changes, among the names of its arguments."""
    if function is aten.native_batch_norm.default:  # its schema does not say so
        return names_in(args[3:5]) if args[5] else []
    found = []
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += names_in(args[i] if i < len(args) else kwargs.get(argument.name))
    return found


def _copies(function: Any, args: Sequence, result: Any) -> bool:
    """Whether the result has the values and the layout of the first argument."""
    exact = function in (aten.clone.default, aten.repeat.default)
    if not exact and not (function is aten.pow.Tensor_Scalar and args[1] == 1.0):
        return False
    one = args[0]
    return (one.shape, one.stride(), one.dtype) == (result.shape, result.stride(), result.dtype)


def _sized_by_values(function: Any, args: Sequence) -> bool:
    """Whether the size of the result depends on values; that of indexing does only with a mask."""
    if torch.Tag.dynamic_output_shape not in function.tags:
        return False
    if function is not aten.index.Tensor:
        return True
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
