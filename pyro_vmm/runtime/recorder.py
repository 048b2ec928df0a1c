"""What a recorder has to do; :mod:`~pyro_vmm.runtime.captured` uses it.

:mod:`~pyro_vmm.runtime.operations` records on a CPU, :mod:`~pyro_vmm.runtime.cuda_graphs` on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

Outputs = tuple[Tensor, ...]
#: A training step, or a function: tensors -> tensors.
Run = Callable[..., Outputs]


class Recorder(Protocol):
    """What records steps: their operations on a CPU, CUDA graphs on a GPU."""

    #: The number of runs on arguments of a shape before one is recorded; at least 1.
    patience: int
    #: Whether these runs are rehearsals, which find out what can't be recorded.
    rehearses: bool
    #: Whether a replay reads the learning rates from the optimisers, so that a recording holds when they change.
    follows_rates: bool
    #: Whether a recording notes what a run happened to do, so that it has to be compared with another run.
    to_be_proven: bool

    def rehearse(self, run: Run, x: Outputs) -> Outputs:
        """Run on arguments x; ``RuntimeError``, perhaps half-way, where the run can't be recorded."""
        ...

    def record(
        self, run: Run, x: Outputs, groups: Sequence[dict], parameters: Sequence[Tensor]
    ) -> tuple[Outputs | None, Run]:
        """Run on arguments x and record it.

        Arguments:
            run: a step, or a function whose first result has gradients.
            x: its arguments.
            groups: the optimisers' groups of parameters.
            parameters: what to differentiate a function by, besides its first argument.

        Returns:
            what a step returned, None for a function, which has to run again; and what repeats the run.

        Raises:
            RuntimeError: it can't be recorded; perhaps half of it has run.
        """
        ...
