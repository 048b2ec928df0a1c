"""Classes or functions by name: the package's own, those that users add, and those of other packages' entry points."""

import sys
from collections import UserDict
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pyro_vmm.runtime.checks import one_line


class Registry(UserDict[str, Any]):
    """Classes by name; other names are looked up in a group of entry points.

    Another package makes a class known in its ``pyproject.toml``::

        [project.entry-points."pyro_vmm.priors"]
        tied = "their_package.tied:Tied"

    A look-up of the class imports its module; listing the names does not.

    Arguments:
        group: the group of the entry points.
        own: the package's own classes by name.

    Raises:
        ValueError: at a look-up, if several packages have the name, or if an entry point can't be loaded.
    """

    def __init__(self, group: str, own: dict[str, Any]):
        self.group = group
        super().__init__(own)

    def __getitem__(self, name: str) -> Any:
        found = _installed(self.group, tuple(sys.path)).get(name, ())
        if not found:
            return super().__getitem__(name)
        packages = ["pyro_vmm"] * (name in self.data) + [_package(each) for each in found]
        if len(packages) > 1:
            problem = f"{name!r} is a name in {' and in '.join(packages)}"
            raise ValueError(f"{problem}; the entry point {found[-1].value!r} of {self.group} should have another name")
        try:
            return found[0].load()
        except Exception as error:  # another package may raise anything
            problem = f"{name!r} is {found[0].value!r} of {packages[0]}, which can't be loaded"
            raise ValueError(f"{problem}: {type(error).__name__}: {one_line(error)}") from error

    def __contains__(self, name: object) -> bool:
        return name in self.data or name in _installed(self.group, tuple(sys.path))

    def __iter__(self):
        return iter({**self.data, **_installed(self.group, tuple(sys.path))})

    def __len__(self) -> int:
        return len(list(iter(self)))


@lru_cache(maxsize=16)
def _installed(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by name, of all packages in this path."""
    found: dict[str, list[EntryPoint]] = {}
    for each in entry_points(group=group):
        found.setdefault(each.name, []).append(each)
    return found


def _package(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else "an unnamed package"
