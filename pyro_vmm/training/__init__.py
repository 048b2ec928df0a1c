"""The SVI step, the MAP step and their alternation (Algorithm 1), early stopping and checkpoints."""

from pyro_vmm.training.config import MONITORS, RATES, RESUMABLE, TrainingConfig
from pyro_vmm.training.elimination import Elimination
from pyro_vmm.training.steps import Steps
from pyro_vmm.training.trainer import Trainer, TrainingDiverged

__all__ = ["MONITORS", "RATES", "RESUMABLE", "Elimination", "Steps", "Trainer", "TrainingConfig", "TrainingDiverged"]
