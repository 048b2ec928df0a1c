"""The names of priors, and what a user may give instead of a name."""

from functools import partial

from pyro_vmm.priors.base import SETTINGS, Prior
from pyro_vmm.priors.mixtures import GaussianMixture, StudentMixture, VampMixture
from pyro_vmm.priors.simple import StandardNormal, VampPrior
from pyro_vmm.runtime.checks import described
from pyro_vmm.runtime.registry import Registry

Given = str | type[Prior] | partial | Prior

#: Classes by name; users may add their own. Each class builds itself, see :meth:`Prior.build`. Other packages add
#: theirs by entry points of the group ``pyro_vmm.priors``.
PRIORS = Registry(
    "pyro_vmm.priors",
    {
        "standard_normal": StandardNormal,
        "vamp": VampPrior,
        "gmm": GaussianMixture,
        "vmm": VampMixture,
        "student_t": StudentMixture,
    },
)


def prior_class(prior: Given) -> type[Prior]:
    """The class of a prior that the user gives as a name, a class, a ``functools.partial`` of one, or an object.

    Raises:
        ValueError: it is none of these, or a class that lacks a part of the protocol.
    """
    expected = f"one of {tuple(PRIORS)}, a class derived from pyro_vmm.priors.Prior, or an object of one"
    if isinstance(prior, str) and prior not in PRIORS:
        raise ValueError(f"prior={prior!r} should be {expected}; add a class of your own to PRIORS first")
    if isinstance(prior, str):
        cls = PRIORS[prior]
    elif isinstance(prior, partial):
        if prior.args:
            raise ValueError(f"prior={described(prior)} has positional arguments, expected settings by name alone")
        cls = prior.func
    else:
        cls = prior if isinstance(prior, type) else type(prior)
    if not (isinstance(cls, type) and issubclass(cls, Prior)):
        if isinstance(prior, str):
            problem = f"prior={prior!r} is registered as {described(cls)}"
            raise ValueError(f"{problem}, expected a class derived from pyro_vmm.priors.Prior")
        raise ValueError(f"prior={described(prior)} should be {expected}")
    lacks = cls.missing()
    if not isinstance(prior, Prior) and getattr(cls.build, "__func__", cls.build) is Prior.build.__func__:
        lacks.append("build")
    if lacks:
        problem = f"{cls.__name__} does not define {', '.join(lacks)}"
        raise ValueError(f"prior={described(prior)}: {problem}, see pyro_vmm.priors.Prior")
    return cls


def settings_taken(prior: Given) -> tuple[str, ...]:
    """The settings of estimators that have an effect on this prior, some of ``SETTINGS``; an object has its own."""
    cls = prior_class(prior)
    if isinstance(prior, Prior):
        return ()
    return tuple(name for name in SETTINGS if name in cls.takes or (name == "init_centres" and cls.free_centres))
