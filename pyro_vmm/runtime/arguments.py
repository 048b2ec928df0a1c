"""The arguments that a class takes by name, for messages on those that it does not take."""

import inspect
import math
from collections.abc import Mapping

from pyro_vmm.runtime.settings import nearest


def named_arguments(cls: type, positional: float) -> tuple[str, ...]:
    """The arguments of a class that a caller gives by name, also those that its constructor hands on as ``**others``.

    Arguments:
        cls: the class.
        positional: the number of arguments that the caller gives by their position.
    """
    found: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(base.__init__).parameters.values()
        for i, each in enumerate(parameters):
            named = each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
            if named and (i >= positional or each.default is not each.empty) and each.name not in found:
                found.append(each.name)
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
        positional = math.inf  # a class gives those of its base that have no default
    return tuple(found)


def unknown_arguments(error: TypeError, given: Mapping[str, str], known: tuple[str, ...], who: str) -> str | None:
    """ "... takes no a, b; it takes c, d" if an error says that an argument is unexpected, else None.

    Python's own message names one of them, and the constructor of a base class.

    Arguments:
        error: what the call raised.
        given: the arguments by name, and what the user calls them.
        known: the arguments that there are.
        who: the name of what takes them.
    """
    unknown = [shown for name, shown in given.items() if name not in known]
    if not unknown or "unexpected keyword argument" not in str(error):
        return None
    suggestion = nearest(unknown[0], known) if len(unknown) == 1 else ""
    return f"{who} takes no {', '.join(unknown)}; it takes {', '.join(known) or 'none by name'}{suggestion}"
