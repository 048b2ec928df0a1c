"""Check the types of options from configuration files; the parser checks those of the command line."""

import sys
from collections.abc import Callable

from pyro_vmm.cli.kinds import KINDS
from pyro_vmm.cli.parser import GROUPS
from pyro_vmm.estimators.settings import granularity


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max


def _is_same(value, other) -> bool:
    return type(value) is type(other) and value == other


#: For each type of the parser: a function that checks a value, and the type's name in messages.
TYPES: dict[Callable, tuple[Callable, str]] = {
    int: (_is_whole, "a whole number"),
    float: (_is_number, "a finite number"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    str: (lambda value: isinstance(value, str), "text"),
    dict: (lambda value: isinstance(value, dict), "a dict of names and values"),
    granularity: (lambda value: _is_number(value) or value == "batch", "a finite number or 'batch'"),
}


class Types(dict):
    """Collects options as a group of the parser does: the type of each, and whether it is a list."""

    def add(self, name: str, help: str, common: bool = False, **about) -> None:
        if "choices" not in about:  # the code that uses an option checks its choices
            type_ = bool if "action" in about else about.get("type", str)
            self[name] = getattr(type_, "other", type_), "nargs" in about


def check_types(config: dict) -> None:
    """Raise ``ValueError`` if an option's value has the wrong type."""
    types = Types()
    for add, *_ in GROUPS:
        add(types)
    defaults = [kind.defaults for kind in KINDS]
    for name in config.keys() & types.keys():
        value, (type_, is_list) = config[name], types[name]
        none = value is None and any(name in kind.settings and kind.settings[name][1].values.or_none for kind in KINDS)
        if none or any(_is_same(value, known.get(name, ...)) for known in defaults):
            continue
        fits, words = TYPES[type_]
        items = value if is_list else [value]
        if not isinstance(items, list | tuple):
            raise ValueError(f"{name}={value!r} should be a list, with each value {words}")
        for item in items:
            if not fits(item):
                raise ValueError(f"{name}={item!r} should be {words}")
