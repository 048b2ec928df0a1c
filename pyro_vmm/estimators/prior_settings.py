"""The settings of priors: which ones the chosen prior takes, and what it is built with."""

from typing import Any

import numpy as np

from pyro_vmm.priors import Prior
from pyro_vmm.priors.base import HANDED, SETTINGS
from pyro_vmm.priors.registry import Given, settings_taken
from pyro_vmm.runtime.checks import described
from pyro_vmm.runtime.settings import defaults

#: The settings that a prior may lack and refuse; it gets them if they differ from their defaults.
OPTIONAL = ("component_covariance", "component_df")


def idle(prior: Given) -> frozenset[str]:
    """The settings that have no effect with this prior.

    ``init`` always has one for a prior given by its name or class: it says at which rows the prior starts, whether or
    not these are among its parameters.
    """
    own = {"init"} if isinstance(prior, Prior) else set()
    return frozenset({*SETTINGS, *own} - {*settings_taken(prior)})


def unused(prior: Given, given: Any) -> dict[str, Any]:
    """The settings of a dataclass that have no effect with this prior and differ from their defaults; the defaults."""
    names = idle(prior)
    usual = {name: value for name, value in defaults(type(given)).items() if name in names}
    return {name: value for name, value in usual.items() if np.any(getattr(given, name) != value)}


def check_used(prior: Given, given: Any) -> None:
    """Raise ``ValueError`` for settings of a dataclass that have no effect with this prior."""
    found = unused(prior, given)
    if not found:
        return
    values, at = listed(found, given)
    if isinstance(prior, Prior):
        problem = f"{values} {'is' if len(found) == 1 else 'are'} for a prior given by its name or class"
        raise ValueError(f"{problem}; prior={described(prior)} has its own: leave {at}")
    taken = [name for name in settings_taken(prior) if name in defaults(type(given))]
    problem = f"{values} {'has' if len(found) == 1 else 'have'} no effect with prior={described(prior)}"
    raise ValueError(f"{problem}, which takes {', '.join(taken) or 'none of these settings'}; leave {at}")


def listed(found: dict[str, Any], given: Any) -> tuple[str, str]:
    """ "a=1, b=2" for the values of settings, and "a at 0" or "them at 0, 0" for their defaults ``found``."""
    values = ", ".join(f"{name}={described(getattr(given, name))}" for name in found)
    name = "them" if len(found) > 1 else next(iter(found))
    return values, f"{name} at {', '.join(map(repr, found.values()))}"


def for_build(prior: Given, given: Any) -> dict[str, Any]:
    """The ``settings`` of :meth:`Prior.build <pyro_vmm.priors.Prior.build>` from those of a dataclass."""
    usual, taken = defaults(type(given)), settings_taken(prior)
    return {
        argument: getattr(given, name)
        for name, argument in HANDED.items()
        if name in taken and name in usual and not (name in OPTIONAL and getattr(given, name) == usual[name])
    }
