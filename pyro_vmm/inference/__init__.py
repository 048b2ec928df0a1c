"""How is a model trained? By SVI and MAP steps in turn (Algorithm 1), with early stopping, checkpoints and settling."""

from pyro_vmm.inference.config import MONITORS, RATES, RESUMABLE, TrainingConfig
from pyro_vmm.inference.elimination import Elimination
from pyro_vmm.inference.settling import Moves, Settled, settle
from pyro_vmm.inference.steps import Steps
from pyro_vmm.inference.trainer import Trainer, TrainingDiverged

__all__ = [
    "MONITORS",
    "RATES",
    "RESUMABLE",
    "Elimination",
    "Moves",
    "Settled",
    "Steps",
    "Trainer",
    "TrainingConfig",
    "TrainingDiverged",
    "settle",
]
