"""Data-parallel training: the processes of ``torch.distributed``, and the share of each."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

Number = TypeVar("Number", float, Tensor)
Value = TypeVar("Value")

SAME_WORK = "the same settings and all rows in each, which reads its share of them"


class Ranks:
    """The processes that train together, of which this is one.

    All go through the same minibatches in the same order. Each reads its share of a minibatch's rows and computes its
    part of every sum over rows; the gradients are summed as well, so that all hold the same parameters at any time.
    With one process, every method returns its argument.

    Arguments:
        rank: the number of this process; number 0 writes files and shows progress.
        size: the number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        # The current minibatch: where each process's rows begin, the rows held here, and whether these are borrowed.
        self.bounds: list[int] = []
        self.held, self.idle = slice(None), False

    @classmethod
    def present(cls) -> "Ranks":
        """The processes of torch's default process group; without one, this process alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    # The current minibatch

    def begin(self, rows: int) -> None:
        """Make a minibatch of so many rows the current one.

        With fewer rows than processes, processes without a row borrow the first one, with weight zero.
        """
        if self.size > 1:
            self.bounds = [rows * rank // self.size for rank in range(self.size + 1)]
            start, stop = self.bounds[self.rank : self.rank + 2]
            self.idle = start == stop
            self.held = slice(0, 1) if self.idle else slice(start, stop)

    def share(self, rows: Tensor) -> Tensor:
        """The part of a minibatch's positions (M,) that this process reads; the minibatch becomes the current one."""
        self.begin(len(rows))
        return rows[self.held]

    def total(self, x: Tensor) -> int:
        """M of the current minibatch; x are its rows held here."""
        return len(x) if self.size == 1 else self.bounds[-1]

    def own(self, value: Number) -> Number:
        """A sum over the rows held here; zero if they are borrowed."""
        return 0.0 * value if self.idle else value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of these parameters by their sums over all processes, in one exchange."""
        if self.size == 1:
            return
        trained = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for _, gradient in trained])
        together(dist.all_reduce, flat)
        for (parameter, _), part in zip(trained, flat.split([p.numel() for p, _ in trained]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    # Values that all processes share

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        together(dist.all_reduce, total)
        return total

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest values over all processes, the same in each."""
        if self.size == 1:
            return tensor
        largest = tensor.detach().clone()
        together(dist.all_reduce, largest, dist.ReduceOp.MAX)
        return largest

    def sum_number(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.size == 1:
            return value
        return self.sum(torch.tensor(value, dtype=torch.float64, device=_device())).item()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return self.sum_number(flag) > 0

    def first(self, value: Value) -> Value:
        """The first process's value, of any type that ``pickle`` can hold."""
        if self.size == 1:
            return value
        values = [value]
        together(dist.broadcast_object_list, values)
        return values[0]

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """A context that the first process runs before the others, so that they find its results."""
        if self.rank:
            self.sum_number(0.0)
        yield
        if not self.rank:
            self.sum_number(0.0)

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                together(dist.broadcast, tensor.detach(), 0)

    def check_same(self, expected: str = SAME_WORK, **facts: Any) -> None:
        """Raise ``ValueError``, in all processes, if they differ in a fact; the message says what is ``expected``."""
        if self.size == 1:
            return
        known: list = [None] * self.size
        together(dist.all_gather_object, known, facts)
        for name in facts:
            values = [each[name] for each in known]
            if any(value != values[0] for value in values):
                raise ValueError(f"the {self.size} processes differ in their {name}: {values}; expected {expected}")


ALONE = Ranks()


def together(collective: Callable, *args) -> None:
    """Call a function of ``torch.distributed``; ``ConnectionError`` if another process is gone."""
    try:
        collective(*args)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"another process of this training has ended or failed ({reason})") from error


def launched_rank() -> int:
    """The number of this process among those that ``torchrun`` started; 0 without it."""
    return int(os.environ["RANK"]) if _launched_size() > 1 else 0


@contextmanager
def process_group(device: str = "auto") -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started: by nccl with a GPU for each, by gloo on CPUs.

    All of them train what is trained inside. With one process, or in a group, this does nothing.

    Arguments:
        device: "auto" (GPUs if there are any) or a torch device without a number.

    Raises:
        ValueError: there are fewer GPUs than processes, or the device is one of them.
    """
    if _launched_size() == 1 or dist.is_initialized():
        yield Ranks.present()
        return
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        torch.cuda.set_device(_own_gpu(device))
        dist.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    else:
        dist.init_process_group("gloo")
    # Not in a ``finally``: after a failure this would wait for the others, which may wait for this process.
    yield Ranks.present()
    dist.destroy_process_group()


def _launched_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _own_gpu(device: str) -> int:
    """The number of this process's GPU on this machine."""
    number, available = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if ":" in device:
        raise ValueError(f"device={device!r} should have no number, as each of several processes has a GPU of its own")
    if number >= available:
        raise ValueError(f"device={device!r} needs a GPU for each process, and this machine has {available}")
    return number


def _device() -> torch.device:
    """The device that the group's backend needs tensors on."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
