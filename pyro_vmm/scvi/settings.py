"""The settings of the prior inside a model of scvi-tools: those of SingleCellVMM that apply there."""

from typing import ClassVar

from pyro_vmm.estimators.settings import CellModel, CellSettings, NamedPrior, PriorChoice, Training
from pyro_vmm.estimators.settings import Model as Components
from pyro_vmm.inference.config import Alternation
from pyro_vmm.priors import Expectation, Responsibilities
from pyro_vmm.priors.base import MPrior
from pyro_vmm.priors.hyperpriors import HyperPrior
from pyro_vmm.runtime.settings import changed, defaults, one_of, setting, settings
from pyro_vmm.scvi.cells import PSEUDO_BATCHES, PseudoBatch
from pyro_vmm.scvi.modules import KL_WEIGHTS, KlWeight

_CELLS = defaults(CellSettings)


def _of_cells(group: type, name: str):
    """A setting of a group, with its default for cells."""
    return changed(group, name, default=_CELLS[name])


@settings
class PriorSettings(PriorChoice):
    """Arguments of a model's constructor, in addition to those of its class of scvi-tools.

    Parameters:
        prior: "vmm" (the VampPrior Mixture Model), "gmm", "student_t", "vamp" or "standard_normal" (scvi-tools' own);
            or a class or an object, as in :class:`~pyro_vmm.VMM`.
        n_components: K, the most clusters there can be; at most the number of cells.
        m_prior, hyperprior, responsibilities, expectation, batch_balance: as in :class:`~pyro_vmm.SingleCellVMM`;
            those that the prior does not take stay at their defaults.
        pseudo_batch: the batch of the pseudo-cells, if the encoder sees it: "averaged" over all batches, or "held" at
            that of the cell where each started, which is quicker; see :class:`~pyro_vmm.scvi.cells.PseudoCells`.
        kl_weight: the weight of the KL divergence of z: that of scvi-tools ("stock"), or that in the ELBO ("elbo").
            They differ only in PEAKVI, whose loss is sum(KL) + M sum(reconstruction) over M cells: it has 1 / M of the
            weight in the ELBO.
    """

    title: ClassVar[str] = "prior"

    n_components: int = _of_cells(Components, "n_components")
    m_prior: MPrior = _of_cells(NamedPrior, "m_prior")
    hyperprior: str | HyperPrior = _of_cells(NamedPrior, "hyperprior")
    responsibilities: Responsibilities = _of_cells(NamedPrior, "responsibilities")
    expectation: Expectation = _of_cells(NamedPrior, "expectation")
    batch_balance: float = _of_cells(CellModel, "batch_balance")
    pseudo_batch: PseudoBatch = setting(
        default="averaged", help="the batch of the pseudo-cells", values=one_of(PSEUDO_BATCHES)
    )
    kl_weight: KlWeight = setting(
        default="stock", help="weight of z's KL, if a class's loss is no ELBO", values=one_of(KL_WEIGHTS)
    )


@settings
class TrainingSettings:
    """Arguments of ``train``, in addition to those of the class of scvi-tools.

    Parameters:
        prior_learning_rate: the learning rate of the MAP step; None for that of the networks.
        freeze_after, reuse_draws: as in :class:`~pyro_vmm.inference.TrainingConfig`.
        settle: as in :class:`~pyro_vmm.SingleCellVMM`.
    """

    title: ClassVar[str] = "training"

    prior_learning_rate: float | None = _of_cells(Alternation, "prior_learning_rate")
    freeze_after: int | None = _of_cells(Alternation, "freeze_after")
    reuse_draws: bool = _of_cells(Alternation, "reuse_draws")
    settle: bool = _of_cells(Training, "settle")


def split(group: type, given: dict) -> tuple[dict, dict]:
    """The arguments that are settings of a group, and the others."""
    own = {name: value for name, value in given.items() if name in defaults(group)}
    return own, {name: value for name, value in given.items() if name not in own}
