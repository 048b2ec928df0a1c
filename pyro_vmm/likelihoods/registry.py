"""The forms in which a user gives a likelihood: a name, a class or an object of the package's kind, or a function."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from torch import nn
from torch.distributions import Distribution

from pyro_vmm.likelihoods.arrays import LIKELIHOODS, Likelihood
from pyro_vmm.likelihoods.cells import CELL_LIKELIHOODS, CellLikelihood
from pyro_vmm.runtime.checks import described

OWN = (Likelihood, CellLikelihood)
Given = str | type[nn.Module] | Callable
L = TypeVar("L", Likelihood, CellLikelihood)


def likelihood_class(likelihood: Given) -> type[Likelihood] | None:
    """The class of a likelihood of arrays; None for a function or module from decoder output to a distribution.

    Arguments:
        likelihood: a name, a class derived from :class:`Likelihood` or a ``functools.partial`` of one, an object of
            one, or a callable.

    Raises:
        ValueError: it is none of these, or a class that does not define ``forward``.
    """
    return _class(likelihood, LIKELIHOODS, Likelihood)


def cell_likelihood_class(likelihood: Given) -> type[CellLikelihood] | None:
    """:func:`likelihood_class` for likelihoods of cells, derived from :class:`CellLikelihood`."""
    return _class(likelihood, CELL_LIKELIHOODS, CellLikelihood)


def of_counts(likelihood: Given, options: dict | None = None) -> bool:
    """Whether a likelihood of cells is for counts, by its class or by the option ``counts`` of a function."""
    cls = cell_likelihood_class(likelihood)
    if isinstance(likelihood, CellLikelihood):
        return likelihood.counts
    return (options or {}).get("counts", cls is None or cls.counts)


def _class(given: Given, registry: Mapping[str, type], base: type[L]) -> type[L] | None:
    cls = registry.get(given) if isinstance(given, str) else _class_itself(given)
    if isinstance(cls, type) and issubclass(cls, base):
        if cls.__abstractmethods__:
            lacks = f"{cls.__name__} does not define {', '.join(sorted(cls.__abstractmethods__))}"
            raise ValueError(f"likelihood={described(given)}: {lacks}, see pyro_vmm.likelihoods.{base.__name__}")
        return cls
    if cls is None and callable(given):
        return None
    if isinstance(given, str) and given in registry:
        problem = f"likelihood={given!r} is registered as {described(cls)}"
        raise ValueError(f"{problem}, expected a class derived from pyro_vmm.likelihoods.{base.__name__}")
    expected = f"one of {tuple(registry)}, a class derived from pyro_vmm.likelihoods.{base.__name__}, an object of one"
    raise ValueError(f"likelihood={described(given)} {_wrong(given, cls)} {expected}, or a function")


def _class_itself(given: Given) -> type | None:
    """The class given, made by a ``partial``, or of an object of the package's kind; None for other callables."""
    if isinstance(given, type):
        return given
    if isinstance(given, partial) and isinstance(given.func, type) and issubclass(given.func, OWN):
        return given.func
    return type(given) if isinstance(given, (*OWN, Distribution)) else None


def _wrong(given: Given, cls: type | None) -> str:
    """The start of an error message on a value that is no likelihood of the right kind."""
    if isinstance(given, str):
        cls = LIKELIHOODS.get(given, CELL_LIKELIHOODS.get(given))
    if not isinstance(cls, type):
        return "should be"
    if issubclass(cls, OWN):
        return f"is for {'VMM' if issubclass(cls, Likelihood) else 'SingleCellVMM'}; expected"
    if issubclass(cls, Distribution):
        return "is a distribution, which a function of the decoder's output returns; expected"
    return "is a class (did you mean an object of it?); expected"
