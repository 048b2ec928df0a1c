"""Record a training step on a GPU as a CUDA graph, to repeat it without Python.

Experimental: it has never run on a GPU yet, and is off unless ``capture`` asks for it.
"""

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vmm.runtime.recorder import Outputs, Run

# Numbers of which torch makes the same tensor however it is asked to; those of NumPy bring a dtype.
PLAIN = (bool, int, float)


class CudaGraphs:
    """The recorder of steps on a GPU, see :class:`~pyro_vmm.runtime.recorder.Recorder`.

    Arguments:
        device: the device of the step's tensors.
    """

    patience = 1
    rehearses = True
    follows_rates = False
    to_be_proven = False

    def __init__(self, device: torch.device):
        self.device = device
        # A stream of its own: the default stream can't be recorded, and what autograd and cuBLAS make in the rehearsal
        # belongs to the stream of the rehearsal.
        self.stream = torch.cuda.Stream(device)

    def rehearse(self, run: Run, x: Outputs) -> Outputs:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            # A wait for the device has to raise here: in a recording it would break more than the recording.
            with torch.cuda.stream(self.stream), as_recorded(), no_waiting():
                return run(*x)
        finally:
            current.wait_stream(self.stream)

    def record(
        self, run: Run, x: Outputs, groups: Sequence[dict], parameters: Sequence[Tensor] = ()
    ) -> tuple[Outputs, Run]:
        gc.collect()  # during a recording it might free memory that another stream still uses
        held = [each.clone() for each in x]  # a graph reads its arguments from fixed places
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream), as_recorded(), _capturable(groups):
            # Other threads, which may be reading ahead, continue.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                outputs = run(*held)
                graph.capture_end()
            except BaseException:
                self._abandon(graph)
                raise

        def replay(*x: Tensor) -> Outputs:
            for place, value in zip(held, x, strict=True):
                place.copy_(value)
            graph.replay()
            return outputs

        return replay(*x), replay  # recording has computed nothing

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a recording that failed, and leave the device's random numbers usable."""
        try:
            graph.capture_end()
        except RuntimeError:
            pass  # it is the same failure again
        try:
            graph.reset()
            with torch.random.fork_rng(devices=[self.device]):
                torch.rand(1, device=self.device)
        except RuntimeError:
            # The generator believes that it is still being recorded; a new state at the same position repairs it
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            generator, fresh = torch.cuda.default_generators[index], torch.Generator(self.device)
            fresh.set_state(generator.get_state())
            generator.graphsafe_set_state(fresh.graphsafe_get_state())


@contextmanager
def _capturable(groups: Sequence[dict]) -> Iterator[None]:
    """Set Adam's flag ``capturable`` for a recording alone: Adam needs it there, and warns of it in eager steps."""
    before = [group["capturable"] for group in groups]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group, value in zip(groups, before, strict=True):
            group["capturable"] = value


class DeviceConstants(TorchFunctionMode):
    """Makes tensors of a single number on their device; torch makes them on the host and copies them.

    The host waits for such a copy, and it can't be recorded. ``torch.distributions`` make many, such as
    ``Laplace(h, 1.0)``.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and len(args) == 1 and type(args[0]) in PLAIN:
            return torch.full((), *args, **kwargs)
        if func is Tensor.new_tensor and len(args) == 2 and type(args[1]) in PLAIN:
            return args[0].new_full((), args[1], **kwargs)
        return func(*args, **kwargs)


@contextmanager
def as_recorded() -> Iterator[None]:
    """A context for a step to record: numbers are made on the device, and no checks of values wait for it."""
    with DeviceConstants(), pyro.validation_enabled(False):
        yield


@contextmanager
def no_waiting() -> Iterator[None]:
    """``RuntimeError`` where the host would wait for a CUDA device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # it warns that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
