"""What a recorder of training steps has to do; :mod:`~pyro_vmm.runtime.captured` uses it.

:mod:`~pyro_vmm.runtime.operations` records on a CPU, :mod:`~pyro_vmm.runtime.cuda_graphs` on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

Outputs = tuple[Tensor, ...]
Step = Callable[[Tensor], Outputs]
Replay = Callable[[], Outputs]


class Recorder(Protocol):
    """What records steps: their operations on a CPU, CUDA graphs on a GPU."""

    #: The number of steps on minibatches of a shape before one is recorded; at least 1.
    patience: int
    #: Whether these steps are rehearsals, which find out what can't be recorded.
    rehearses: bool
    #: Whether a replay reads the learning rates from the optimisers, so that a recording holds when they change.
    follows_rates: bool
    #: Whether a recording notes what a step happened to do, so that it has to be compared with another step.
    to_be_proven: bool

    def rehearse(self, step: Step, x: Tensor) -> Outputs:
        """Run the step; ``RuntimeError``, perhaps half-way, where it can't be recorded."""
        ...

    def record(self, step: Step, x: Tensor, groups: Sequence[dict]) -> tuple[Outputs, Replay]:
        """Run the step and record it.

        Arguments:
            step: the step.
            x: a minibatch, (M, ...); a replay takes the values that this tensor has then.
            groups: the optimisers' groups of parameters.

        Returns:
            what the step returned, and a function that repeats the step.

        Raises:
            RuntimeError: it can't be recorded; perhaps half of it has run.
        """
        ...
