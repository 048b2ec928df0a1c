"""The models: subclasses of scvi-tools' models with the same names and another prior on z."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import chain
from typing import Any

import numpy as np
import scvi.external
import scvi.model
import torch
from scvi.model.base import BaseModelClass

from pyro_vmm.estimators import building, prior_settings
from pyro_vmm.estimators.settings import CellSettings
from pyro_vmm.priors import Prior, prior_class
from pyro_vmm.priors.balance import balance_for
from pyro_vmm.runtime.checks import described
from pyro_vmm.runtime.settings import check_settings, defaults, settings_of
from pyro_vmm.scvi import contract
from pyro_vmm.scvi.cells import MEASURED, Encoder, Layout, PseudoCells, all_counts, read
from pyro_vmm.scvi.clusters import Clusters
from pyro_vmm.scvi.modules import HeldPrior, module_class
from pyro_vmm.scvi.settings import PriorSettings, TrainingSettings, split
from pyro_vmm.scvi.streams import Sample, training_cells
from pyro_vmm.scvi.training import NO_MINIBATCH, MapStep, runner_class

#: The classes of scvi-tools whose contract is tested; its other classes are refused.
STOCK = {
    "SCVI": scvi.model.SCVI,
    "LinearSCVI": scvi.model.LinearSCVI,
    "SCANVI": scvi.model.SCANVI,
    "TOTALVI": scvi.model.TOTALVI,
    "PEAKVI": scvi.model.PEAKVI,
    "POISSONVI": scvi.external.POISSONVI,
    "MULTIVI": scvi.model.MULTIVI,
    "CYTOVI": scvi.external.CYTOVI,
}
#: Without ``adata``, pseudo-cells start at random ones of the first so many cells for each of them.
AMONG = 10
# The module of the classes whose contract is tested, as they name it.
OWN = "pyro_vmm.scvi"
# Arguments of stock constructors, and their values beside a mixture: CYTOVI's own mixture is off, and so is MULTIVI's
# penalty on different posteriors of the modalities, which noise in z lowers. A mixture adapts to any scale of z, and
# noise then costs nothing else.
OFF = {"prior_mixture": False, "modality_penalty": "None"}
# The name of the layout among the constructor's arguments in a model file.
LAYOUT = "vmm_layout"
# Stock arguments of `train` that raise the weight of the KL divergence by and by, and the values that switch this off.
NO_WARM_UP = {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 0}
# The lowest learning rate of a class by default, that of SingleCellVMM. Classes for chromatin have a tenth of it, at
# which the mixture stays with z's that say nothing of the cells for hundreds of epochs.
LEAST_RATE = defaults(CellSettings)["learning_rate"]


class WithVMM(Clusters):
    """A mixin for models of scvi-tools; abstract."""

    def _start(self, stock_init, *args, **kwargs) -> None:
        """Make the stock model, then the prior in its module."""
        layout = kwargs.pop(LAYOUT, None)
        own, others = split(PriorSettings, kwargs)
        self.prior_settings = PriorSettings(**own)
        check_settings(self.prior_settings)
        if layout is None:  # a model of a file may have such settings from an earlier version
            prior_settings.check_used(self.prior_settings.prior, self.prior_settings)
        if self._has_mixture():
            others = self._for_a_mixture(stock_init, args, others)
        stock_init(self, *args, **others)
        self._training = TrainingSettings()
        self.train_prior_ = True
        if self.module is not None:
            self._check_latent_distribution()
        self._remember()
        if layout is not None:
            self._restore(Layout(**layout))
        elif self._has_adata():
            if self._has_mixture():
                self._warn_of_penalty()
            with torch.random.fork_rng(devices=[]):  # the prior must not change the stock model's draws
                self._attach_from_adata()

    def _has_mixture(self) -> bool:
        return prior_class(self.prior_settings.prior).has_clusters

    def _for_a_mixture(self, stock_init, args: tuple, kwargs: dict) -> dict:
        """The stock constructor's arguments, without another mixture, and without a penalty that is not asked for."""
        if kwargs.get("prior_mixture"):
            name, prior = type(self).__name__, described(self.prior_settings.prior)
            raise ValueError(f"prior_mixture=True is another prior in {name}, expected False with prior={prior}")
        signature = inspect.signature(stock_init)
        given = signature.bind_partial(self, *args).arguments
        off = {name: value for name, value in OFF.items() if name in signature.parameters and name not in given}
        return {**off, **kwargs}

    @property
    def _tried(self) -> bool:
        """Whether each new model is first tried on a few cells: not those of a class whose contract is tested."""
        return type(self).__module__ != OWN

    def _check_latent_distribution(self) -> None:
        found = getattr(self.module, "latent_distribution", "normal")
        if found != "normal" and self._has_mixture():
            name = type(self).__name__
            raise ValueError(f"latent_distribution={found!r} of {name} has no mixture of normals, expected 'normal'")

    def _warn_of_penalty(self) -> None:
        """Warn of MULTIVI's penalty on different posteriors of the modalities, which noise in z lowers."""
        penalty = getattr(self.module, "modality_penalty", "None")
        if penalty != "None":
            warnings.warn(
                f"modality_penalty={penalty!r} favours a z that says little of the cells, with a mixture that adapts "
                "to its scale; the default here is 'None'",
                UserWarning,
                stacklevel=4,
            )

    def _attach_from_adata(self) -> None:
        """Put the prior into the module. Its pseudo-cells start at random cells.

        ``scvi.settings.seed`` seeds the draw, which uses torch's random numbers.
        """
        n = self.adata.n_obs
        if self._tried and self._has_mixture():
            contract.check_model(self, read(self, np.arange(min(contract.FEW, n))))
        tensors = read(self, torch.randperm(n)[: self._settle_on_n_components(n)].numpy())
        layout = Layout.of(self.module, tensors, self.summary_stats.get("n_batch", 1))
        layout.counts = all_counts(self, (field.key for field in layout.fields if field.key in MEASURED))
        self._attach(self.module, layout, layout.pack(tensors))
        self._remember(layout)

    def _attach_from(self, datamodule: Any) -> None:
        """Put the prior into the module of a model without ``adata``, before its first training.

        Its pseudo-cells start at random ones of the first cells, ``AMONG`` times as many, of an epoch that is not
        trained on.
        """
        if hasattr(self.module, "vmm"):
            return
        self._check_latent_distribution()
        with torch.random.fork_rng(devices=[]), closing(training_cells(datamodule)) as stream:
            if (first := next(stream, None)) is None:
                raise ValueError(NO_MINIBATCH)
            if self._tried and self._has_mixture():
                contract.check_model(self, first)
            # A model that was made without a registry has no statistics of the data.
            stats = vars(self).get("summary_stats")
            n_batches = datamodule.n_batch if stats is None else stats.get("n_batch", 1)
            layout = Layout.of(self.module, first, n_batches)
            most = self._settle_on_n_components()
            sample, seen = Sample(most, int(torch.randint(2**31, ()))), 0
            for tensors in chain([first], stream):
                cells = layout.pack(tensors)
                sample.add(cells)
                seen += len(cells)
                if seen >= AMONG * most:
                    break
            cells = sample[torch.arange(self._settle_on_n_components(len(sample)))]
            self._attach(self.module, layout, cells)
        self._remember(layout)

    def _settle_on_n_components(self, n: int | None = None) -> int:
        """Set ``n_components`` to what it can be with N cells, or an unknown number; the number of pseudo-cells.

        Without clusters that is one, which is not used.
        """
        given = self.prior_settings
        if not self._has_mixture():
            return 1
        if isinstance(given.prior, Prior):
            given.n_components = given.prior.n_components
        if n is not None and given.n_components > n:
            warnings.warn(f"n_components={given.n_components} is more than the {n} cells; using {n}", stacklevel=5)
            given.n_components = n
        return given.n_components

    def _restore(self, layout: Layout) -> None:
        """Put a prior into the module whose values are loaded next."""
        initial = torch.zeros(self._settle_on_n_components(), layout.width)
        with torch.random.fork_rng(devices=[]):
            self._attach(self.module, layout, initial)
        if not self._has_adata():
            # For a data module, scvi-tools' `load` and `load_query_data` make the module a second time.
            self._module_cls = _finished(self._module_cls, lambda module: self._attach(module, layout, initial))
        self._remember(layout)

    def _attach(self, module, layout: Layout, initial: torch.Tensor) -> None:
        """Put the prior into a module, with pseudo-cells that start at these cells (K, W)."""
        given, d = self.prior_settings, module.n_latent
        pseudo = PseudoCells(layout, initial, given.pseudo_batch, d)
        prior = building.build_prior(given.prior, d, pseudo, prior_settings.for_build(given.prior, given))
        balance = balance_for(given.batch_balance, layout.n_batches, prior.n_components)
        module.__class__ = module_class(type(module))
        module.vmm = HeldPrior(prior, layout, balance, given.kl_weight)
        module.vmm.rest()

    def _remember(self, layout: Layout | None = None) -> None:
        """Keep the settings, and the layout if there is one, as arguments of the constructor.

        ``load``, ``load_query_data`` and ``SCANVI.from_scvi_model`` call it with them.
        """
        saved = {name: getattr(self.prior_settings, name) for name in defaults(PriorSettings)}
        if layout is not None:
            saved[LAYOUT] = layout.to_dict()
        self.init_params_["non_kwargs"].update(saved)

    def _train(self, stock_train, *args, **kwargs):
        """Train by the stock method, with MAP steps in between, and settle."""
        own, others = split(TrainingSettings, kwargs)
        self._training = TrainingSettings(**own)
        check_settings(self._training)
        args, others = _by_name(stock_train, (self, *args), others)
        plan, config = others.get("plan_kwargs"), others.get("plan_config")
        if any(_value(each, "compile") for each in (plan, config)):
            raise ValueError("compile=True is not supported: the prior is trained beside the compiled module")
        if others.get("strategy") in ("dp", "data_parallel"):
            raise ValueError(f"strategy={others['strategy']!r} is not supported, expected 'ddp' for several devices")
        if not self._has_adata() and others.get("datamodule") is None:
            raise ValueError("datamodule=None, expected one that gives the cells: the model was made without adata")
        if not self._has_adata() and "ddp" in str(others.get("strategy")):
            raise ValueError(f"strategy={others['strategy']!r} needs a model with adata: its processes share the cells")
        if self._has_mixture():
            others = self._without_warm_up(stock_train, others)
            if self.train_prior_:
                others = self._at_usual_rate(stock_train, others)
        return stock_train(*args, **others)

    def _without_warm_up(self, stock_train, kwargs: dict) -> dict:
        """The stock method's arguments, with the KL at full weight from the start unless they say otherwise."""
        accepted = inspect.signature(stock_train).parameters
        plan, config = kwargs.get("plan_kwargs"), kwargs.get("plan_config")
        given = {name: _value(each, name) for each in (config, plan) for name in NO_WARM_UP if _states(each, name)}
        if "n_epochs_kl_warmup" not in given:
            plan = plan if isinstance(plan, Mapping) or plan is None else plan.to_kwargs()
            kwargs = {**kwargs, "plan_kwargs": {**(plan or {}), "n_epochs_kl_warmup": None}}
        # TOTALVI, PEAKVI, MULTIVI and CYTOVI put their own arguments into the plan's.
        own = {name: given.get(name, off) for name, off in NO_WARM_UP.items() if name in accepted}
        return {**own, **kwargs}

    def _at_usual_rate(self, stock_train, kwargs: dict) -> dict:
        """The stock method's arguments, with a learning rate of ``LEAST_RATE`` for a lower one that is the default."""
        rate = inspect.signature(stock_train).parameters.get("lr")
        given = any(_states(kwargs[name], "lr") for name in ("plan_kwargs", "plan_config") if kwargs.get(name))
        low = rate is not None and rate.default < LEAST_RATE and not given
        return {"lr": LEAST_RATE, **kwargs} if low else kwargs

    def _map_steps(self) -> list[MapStep]:
        """The callback that trains the prior and counts the cells of its components; none without a mixture."""
        given = self._training
        settings = given.prior_learning_rate, given.freeze_after, given.reuse_draws
        return [MapStep(self.module.vmm, *settings, trains=self.train_prior_)] if self._has_mixture() else []

    @classmethod
    def _load(cls, stock_load, *args, **kwargs):
        """Load a file by a stock method; ``ValueError`` for a file of a stock model."""
        try:
            return stock_load(*args, **kwargs)
        except RuntimeError as error:
            if 'key(s) in state_dict: "vmm.' not in str(error):
                raise
        name = cls.__name__
        raise ValueError(f"this file was written by scvi-tools' own {name} and has no prior: load it by scvi.model")

    @classmethod
    def _load_query_data(cls, stock_load, *args, **kwargs):
        model = cls._load(stock_load, *args, **kwargs)
        model.train_prior_ = False
        mixture = model.module.vmm
        mixture.requires_grad_(False)
        if hasattr(mixture.prior, "pseudo_inputs"):
            # Keep the pseudo-cells' q(mu) from the reference's encoder: surgery trains the encoder further.
            mixture.prior.pseudo_inputs.fix(Encoder(model.module, mixture.layout))
        model._forget_clusters()  # those of the reference's cells
        return model

    @classmethod
    def _from_scvi_model(cls, stock_from, scvi_model, *args, **kwargs):
        model = stock_from(scvi_model, *args, **kwargs)
        model.train_prior_ = getattr(scvi_model, "train_prior_", True)  # that of a query stays the reference's
        return model


# Stock methods that make a model from a file or from another model, and the methods that stand for them.
LOADING = {"load": "_load", "load_query_data": "_load_query_data", "from_scvi_model": "_from_scvi_model"}


def with_vmm(cls: type[BaseModelClass]) -> type[BaseModelClass]:
    """A subclass of a model of scvi-tools with the same name, with the VMM or another prior in the place of N(0, I).

    Its constructor also takes the arguments of :class:`~pyro_vmm.scvi.settings.PriorSettings`, and ``train`` those of
    :class:`~pyro_vmm.scvi.settings.TrainingSettings`. After ``train`` it has ``annotate``, ``predict_clusters``,
    ``predict_proba`` and ``merge_clusters``, and ``predict`` if the class has none of its own.

    A class of your own is a subclass of one of ``STOCK`` or of scvi-tools' ``BaseModelClass``. Each of its new models
    is tried on a few cells, see :mod:`pyro_vmm.scvi.contract`.

    Raises:
        TypeError: the class is one of scvi-tools that is not in ``STOCK``, or a subclass of such a one, or breaks the
            contract.
    """
    _check_ancestors(cls)  # first, so that a class of scvi-tools is refused by its name
    if isinstance(cls, type) and issubclass(cls, WithVMM):
        raise TypeError(f"{cls.__name__} has the prior already")
    contract.check_class(cls)
    _check_names(cls)

    @functools.wraps(cls.__init__)
    def __init__(self, *args, **kwargs):
        self._start(cls.__init__, *args, **kwargs)

    @functools.wraps(cls.train)
    def train(self, *args, **kwargs):
        return self._train(cls.train, *args, **kwargs)

    __init__.__signature__ = _extended(cls.__init__, PriorSettings)  # pyright: ignore[reportAttributeAccessIssue]
    train.__signature__ = _extended(cls.train, TrainingSettings)  # pyright: ignore[reportAttributeAccessIssue]
    stock = cls in STOCK.values()
    members = {
        "__init__": __init__,
        "train": train,
        "__module__": OWN if stock else cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": f"{cls.__name__} with a prior of :func:`pyro_vmm.scvi.with_vmm` on z.\n\n{cls.__doc__ or ''}",
        "_train_runner_cls": runner_class(cls._train_runner_cls),
    }
    for name, method in LOADING.items():
        if hasattr(cls, name):
            members[name] = _loading(cls, name, method)
    if not hasattr(cls, "predict"):  # SCANVI's predicts labels
        members["predict"] = Clusters.predict_clusters
    return type(cls.__name__, (WithVMM, cls), members)


def _loading(cls: type[BaseModelClass], name: str, method: str) -> Any:
    """A class method in the place of a stock one, which hands that to a method of :class:`WithVMM`."""
    stock = getattr(cls, name)

    @functools.wraps(stock)
    def load(new, *args, **kwargs):
        return getattr(new, method)(functools.partial(stock.__func__, new), *args, **kwargs)

    return classmethod(load)


def _check_ancestors(cls: type) -> None:
    """Raise ``TypeError`` if the nearest model of scvi-tools among a class's ancestors is not in ``STOCK``."""
    of_scvi = [each for each in getattr(cls, "__mro__", ()) if each.__module__.split(".")[0] == "scvi"]
    models = [each for each in of_scvi if not each.__module__.startswith("scvi.model.base")]
    models = [each for each in models if issubclass(each, BaseModelClass)]
    if models and models[0] not in STOCK.values():
        raise TypeError(f"{models[0].__name__} of scvi-tools can't have the prior, expected one of {', '.join(STOCK)}")


def _check_names(cls: type) -> None:
    """Raise ``TypeError`` for a class with names of its own for what it would get."""
    names = {*vars(Clusters), *vars(WithVMM)} - {"get_importance_weights"}  # a stock method
    taken = sorted(name for name in names if not name.startswith("_") and hasattr(cls, name))
    if taken:
        raise TypeError(f"{cls.__name__} can't have the prior, which brings {', '.join(taken)} of the same name")


def _extended(function, group: type) -> inspect.Signature:
    """The signature of a stock function, extended by the settings of a group as keyword-only arguments."""
    signature = inspect.signature(function)
    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults(group)[name])
        for name in settings_of(group)
    ]
    parameters = list(signature.parameters.values())
    rest = [each for each in parameters if each.kind is each.VAR_KEYWORD]
    return signature.replace(parameters=[each for each in parameters if each not in rest] + own + rest)


def _by_name(function, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of a method with all but ``self`` by their names, as far as it names them."""
    bound = inspect.signature(function).bind_partial(*args, **kwargs)
    parameters = bound.signature.parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return args, kwargs
    named = dict(bound.arguments)
    others = next((named.pop(each.name, {}) for each in parameters if each.kind is each.VAR_KEYWORD), {})
    return (named.pop(next(iter(named))),), {**named, **others}


def _finished(cls: Callable[..., Any], finish: Callable[[Any], None]) -> Callable[..., Any]:
    """A function that makes an object of a class and finishes it."""

    @functools.wraps(cls)  # who calls it may inspect the names of the arguments
    def make(*args, **kwargs):
        made = cls(*args, **kwargs)
        finish(made)
        return made

    return make


def _value(given, name: str):
    """The value of this name in a dict or an object of settings, or None."""
    return given.get(name) if isinstance(given, Mapping) else getattr(given, name, None)


def _states(given, name: str) -> bool:
    """Whether a dict has this name, or an object of settings another value than its class's default."""
    return name in given if isinstance(given, Mapping) else _value(given, name) != _value(type(given), name)


SCVI, LinearSCVI, SCANVI, TOTALVI, PEAKVI, POISSONVI, MULTIVI, CYTOVI = map(with_vmm, STOCK.values())
