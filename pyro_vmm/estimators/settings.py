"""The settings of the estimators: each is stated once, in the group that it belongs to.

Constructors, checks, ``config.json``, what may differ when a run is resumed, and options of the command line follow
from the fields. A group has the title of its options there.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import nn

from pyro_vmm.data.augmentations import AUGMENTATIONS, Augmentation, as_augmentation
from pyro_vmm.estimators import building, choices, starts
from pyro_vmm.estimators.inputs import SEVERAL
from pyro_vmm.inference.config import Alternation, Monitored, Optimisation, TrainingConfig
from pyro_vmm.likelihoods import CELL_LIKELIHOODS, LIKELIHOODS, Given, cell_likelihood_class, likelihood_class
from pyro_vmm.networks import COVARIANCE_STARTS, COVARIANCES, CovarianceShape, CovarianceStart
from pyro_vmm.priors import COVARIANCES as FAMILIES
from pyro_vmm.priors import (
    EXPECTATIONS,
    PRIORS,
    RESPONSIBILITIES,
    Covariance,
    Expectation,
    Responsibilities,
    prior_class,
)
from pyro_vmm.priors.base import MPrior, check_m_prior
from pyro_vmm.priors.covariances import as_covariance
from pyro_vmm.priors.hyperpriors import HYPERPRIORS, HyperPrior, as_hyperprior
from pyro_vmm.priors.pseudo_inputs import PSEUDO_BATCHES, PseudoBatch
from pyro_vmm.priors.registry import Given as PriorGiven
from pyro_vmm.runtime.checks import check_choice, check_not_negative, check_whole, is_real
from pyro_vmm.runtime.settings import (
    POSITIVE,
    TRUTH,
    WHOLE,
    Auto,
    Values,
    changed,
    one_of,
    or_auto,
    or_never,
    or_none,
    setting,
    settings,
)

Dtype = Literal["float32", "float64"]
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}
Library = Literal["observed", "inferred"]
LIBRARIES = get_args(Library)
Network = str | nn.Module | Callable[..., nn.Module]


def granularity(text: str) -> MPrior:
    """A number, or "batch"."""
    try:
        return "batch" if text == "batch" else float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} should be a number or 'batch'") from error


def _below_one(name: str, value: Any) -> None:
    if not (is_real(value) and 0 <= value < 1):
        raise ValueError(f"{name}={value!r} should be at least 0 and below 1")


def _widths(name: str, value: Any) -> None:
    if isinstance(value, str) and value == "auto":
        return
    if np.ndim(value) and not isinstance(value, SEVERAL):
        raise ValueError(f"{name}={value!r} should be a list of widths")
    if np.ndim(value) != 1 or len(value) == 0:
        raise ValueError(f"{name}={value!r} should hold at least one width")
    for width in value:
        check_whole(f"a width of {name}", width)


def _options(name: str, value: Any) -> None:
    if not isinstance(value, dict | None):
        raise ValueError(f"{name}={value!r} should be a dict of arguments, or None")


def _network(name: str, value: Any) -> None:
    building.check_networks(**{name: value})


def _cells_to_start_from(name: str, value: Any) -> None:
    if isinstance(value, str):
        one_of(starts.INITS).check(name, value)
    elif not isinstance(value, SEVERAL) or not all(isinstance(cell, str) for cell in value):
        raise ValueError(f"{name}={value!r} should be one of {starts.INITS}, or a list of names of cells")
    elif len(set(value)) < len(list(value)):
        raise ValueError(f"{name}={list(value)} should name each cell once")


def _column(name: str, value: Any) -> None:
    if not isinstance(value, str | None):
        raise ValueError(f"{name}={value!r} should be one name, or None")


def _columns(name: str, value: Any) -> None:
    if not isinstance(value, SEVERAL | None):
        raise ValueError(f"{name}={value!r} should be a list of column names")


def _posterior_covariance(name: str, value: Any) -> None:
    if isinstance(value, str) and value in FAMILIES and value not in COVARIANCES:
        problem = f"{name}={value!r} should be one of {COVARIANCES}, being that of q(z | x)"
        raise ValueError(f"{problem}; that of the prior's components is component_{name}")
    check_choice(name, value, COVARIANCES)


def _component_covariance(name: str, value: Any) -> None:
    as_covariance(value, name)


def _of_value(check: Callable[[Any], object]) -> Callable[[str, Any], object]:
    """A check that takes no name."""
    return lambda name, value: check(value)


# What all estimators have


@settings
class Data:
    """The part of the data that is used."""

    title: ClassVar[str] = "data"

    validation_fraction: float = setting(
        default=0.1,
        help="share of rows or cells held back for early stopping",
        values=Values(_below_one, float),
        metavar="F",
    )


@settings
class Model:
    """The components, and the networks between z and x."""

    title: ClassVar[str] = "model"

    n_components: int = setting(
        default=100,
        kw_only=False,
        option="components",
        help="K, the most clusters there can be",
        values=WHOLE,
        common=True,
        metavar="K",
    )
    latent_dim: int = setting(default=10, kw_only=False, help="D", values=WHOLE, common=True, metavar="D")
    likelihood: Given = setting(
        default="normal",
        help="the distribution of x",
        values=Values(_of_value(likelihood_class), names=LIKELIHOODS),
        common=True,
        metavar="NAME",
    )
    likelihood_options: dict | None = setting(
        default=None,
        help='as JSON, such as \'{"scale": "per_feature"}\'',
        values=Values(_options, dict, or_none=True),
        metavar="JSON",
    )
    hidden: Sequence[int] | str = setting(
        default="auto",
        help="widths of the encoder's layers, mirrored in the decoder; by the size of a row if none are named",
        values=Values(_widths, int, several=True),
        metavar="H",
    )


@settings
class Machine:
    """Where and how the numbers are computed."""

    title: ClassVar[str] = "training"

    random_state: Any = setting(
        default=None,
        option="seed",
        help="of everything random",
        values=Values(type=int),
        common=True,
        metavar="SEED",
        unset="0",
    )
    device: str = setting(
        default="auto",
        help="auto, cpu, cuda, ...",
        values=Values(_of_value(building.choose_device)),
        common=True,
        metavar="NAME",
        resume="always",
    )
    dtype: Dtype = setting(default="float32", help="of all numbers", values=one_of(tuple(DTYPES)))
    progress: bool = setting(default=False, option=None, help="show a progress bar", resume="always")


# The mixture prior


@settings
class Posterior:
    """The shape of q(z | x)."""

    title: ClassVar[str] = "model"

    covariance: CovarianceShape = setting(
        default="full", help="of q(z | x)", values=Values(_posterior_covariance, choices=COVARIANCES)
    )


@settings
class ArrayPosterior(Posterior):
    """Where its covariance starts."""

    covariance_start: CovarianceStart = setting(
        default="diagonal",
        help="a full one at first; random is the authors'; arrays only",
        values=one_of(COVARIANCE_STARTS),
    )


@settings
class PriorChoice:
    """Which prior."""

    title: ClassVar[str] = "model"

    prior: PriorGiven = setting(
        default="vmm",
        help="the prior on the latent space",
        values=Values(_of_value(prior_class), choices=PRIORS),
        common=True,
    )


@settings
class NamedPrior:
    """How a prior that is given by its name or class is made, and where it starts; an object has its own."""

    title: ClassVar[str] = "granularity and the prior's inference"

    m_prior: MPrior = setting(
        default=256,
        help="a cluster survives on more than about one row in M",
        values=Values(check_m_prior, granularity),
        common=True,
        metavar="M|batch",
    )
    hyperprior: str | HyperPrior = setting(
        default="paper",
        help="the paper's numbers or those of its authors' code",
        values=Values(_of_value(as_hyperprior), choices=HYPERPRIORS),
    )
    responsibilities: Responsibilities = setting(
        default="differentiated",
        help="in the MAP step; held is the paper's",
        values=one_of(RESPONSIBILITIES),
    )
    expectation: Expectation = setting(default="analytic", help="over the cluster centres", values=one_of(EXPECTATIONS))
    component_covariance: str | Covariance = setting(
        default="full",
        help="of a component of the prior; a tied one is that of all components",
        values=Values(_component_covariance, choices=FAMILIES),
    )
    component_df: float | None = setting(
        default=None,
        help="degrees of freedom of a student_t's components",
        values=or_none(POSITIVE),
        metavar="NU",
        unset="5",
    )
    init: starts.Init = setting(
        default="random", help="pseudo-inputs start from such rows", values=one_of(starts.INITS)
    )


@settings
class NamedArrayPrior(NamedPrior):
    """Besides, of arrays."""

    train_pseudo_inputs: bool = setting(
        default=True, help="whether they leave these rows in training; arrays only", values=TRUTH
    )
    init_centres: starts.InitCentres = setting(
        default="normal", help="where a gmm's centres start; arrays only", values=one_of(starts.INIT_CENTRES)
    )


@settings
class Training(Alternation):
    """What follows the alternation, and all of its settings in one object."""

    settle: bool = setting(
        default=True,
        help="after training, split and merge components, and group them",
        values=TRUTH,
        resume="always",
    )
    training: TrainingConfig | None = setting(
        default=None, option=None, help="the settings of training in one object, in place of the single ones"
    )


# Arrays


@settings
class Arrays(Model):
    """How a model reads arrays."""

    title: ClassVar[str] = "data of arrays and images"

    scaling: choices.Scaling | None = setting(
        default="auto",
        help="how X is brought to the model's scale; tables: standard if normal or student_t",
        values=one_of(choices.SCALINGS),
    )
    encoder: Network = setting(default="mlp", option=None, help="network from x to features", values=Values(_network))
    decoder: Network = setting(default="mlp", option=None, help="network from z to features", values=Values(_network))


@settings
class Augmented:
    """How rows are changed in training."""

    title: ClassVar[str] = "training"

    augment: str | Augmentation | None = setting(
        default=None,
        help="train on changed copies of rows, too, which share their clusters",
        values=Values(_of_value(as_augmentation), names=AUGMENTATIONS, or_none=True),
        metavar="NAME",
        unset="none",
    )


@settings
class ArraySettings(
    Machine, Data, Augmented, Training, Monitored, NamedArrayPrior, ArrayPosterior, Arrays, PriorChoice
):
    """The settings of :class:`~pyro_vmm.VMM`."""

    epochs: int | Auto = changed(Optimisation, "epochs", default="auto", values=or_auto(WHOLE))
    batch_size: int | Auto = changed(Optimisation, "batch_size", default="auto", values=or_auto(WHOLE))
    learning_rate: float | Auto = changed(Optimisation, "learning_rate", default="auto", values=or_auto(POSITIVE))
    patience: int | Auto | None = changed(Optimisation, "patience", default="auto", values=or_auto(or_never(WHOLE)))
    decay_fraction: float = 0.5


@settings
class RivalSettings(Machine, Data, Optimisation, Monitored, Arrays):
    """The settings that the rivals share."""

    n_components: int = field(default=10, kw_only=False)


# Cells: what differs


@settings
class CellData:
    """The columns and layers that a model reads."""

    title: ClassVar[str] = "data of single cells"

    batch_key: str | None = setting(
        default=None,
        kw_only=False,
        help="batches to integrate",
        values=Values(_column, or_none=True),
        common=True,
        metavar="COLUMN",
        unset="a single batch",
    )
    layer: str | None = setting(
        default=None,
        kw_only=False,
        help="where the counts lie; raw is adata.raw, if no layer",
        values=Values(_column, or_none=True),
        common=True,
        metavar="LAYER",
        unset="X",
    )
    categorical_covariate_keys: Sequence[str] = setting(
        default=(),
        option="categorical_covariates",
        help="further columns of categories to correct for",
        values=Values(_columns, several=True),
        metavar="COLUMN",
    )
    continuous_covariate_keys: Sequence[str] = setting(
        default=(),
        option="continuous_covariates",
        help="columns of numbers to correct for",
        values=Values(_columns, several=True),
        metavar="COLUMN",
    )
    size_factor_key: str | None = setting(
        default=None,
        help="column of size factors",
        values=Values(_column, or_none=True),
        metavar="COLUMN",
        unset="the cell's total counts",
    )


@settings
class CellModel(Model):
    """scVI's networks."""

    title: ClassVar[str] = "model of single cells"

    n_components: int = field(default=Model.n_components, kw_only=True)
    latent_dim: int = field(default=Model.latent_dim, kw_only=True)
    hidden: Sequence[int] | str = choices.CELLS
    library: Library = setting(
        default="observed",
        help="library sizes: the total counts, or log-normal by batch",
        values=one_of(LIBRARIES),
    )
    dropout: float = setting(default=0.1, help="in the encoder", values=Values(_below_one, float), metavar="F")
    encode_covariates: bool = setting(default=True, help="whether the encoder sees batch and covariates", values=TRUTH)
    batch_balance: float = setting(
        default=2.0,
        help="discourages clusters of one batch; 0 for the paper's model",
        values=Values(check_not_negative, float),
        metavar="T",
    )


@settings
class NamedCellPrior(NamedPrior):
    """Besides, of cells."""

    title: ClassVar[str] = "model of single cells"

    hyperprior: str | HyperPrior = "reference"
    pseudo_batch: PseudoBatch = setting(
        default="uniform", help="the batch of the pseudo-inputs", values=one_of(PSEUDO_BATCHES)
    )


@settings
class CellSettings(Machine, Data, Training, NamedCellPrior, Posterior, CellModel, PriorChoice, CellData):
    """The settings of :class:`~pyro_vmm.SingleCellVMM`: those of arrays, but for these."""

    likelihood: Given = changed(
        Model, "likelihood", default="zinb", values=Values(_of_value(cell_likelihood_class), names=CELL_LIKELIHOODS)
    )
    covariance: CovarianceShape = "diagonal"
    init: starts.Init | Sequence[str] = changed(
        NamedPrior, "init", default="random", values=Values(_cells_to_start_from, choices=starts.INITS)
    )
    epochs: int | Auto = changed(Optimisation, "epochs", default="auto", values=or_auto(WHOLE))
    batch_size: int = 128
    learning_rate: float = 1e-3
    patience: int | None = 45
    plateau: float | None = 1.0
    decay_fraction: float = 1 / 3
