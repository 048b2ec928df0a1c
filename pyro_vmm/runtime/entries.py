"""Checks of the entries read from a file: whether they are there, and of the right type and range."""

import math
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, TypeGuard

import torch
from torch import Tensor

#: The names of types in messages.
KINDS = {dict: "names and values", list: "a list", str: "text", bool: "true or false", Tensor: "a tensor"}


class Damaged(ValueError):
    """The content of a file is wrong."""


class Entries:
    """Names and values read from a file; every error is :class:`Damaged` and names the part of the file.

    Arguments:
        content: what was read.
        place: its name in messages.
    """

    def __init__(self, content: Any, place: str):
        self.place = place
        if not isinstance(content, dict):
            raise self.wrong(f"it holds a {type(content).__name__}, expected names and values")
        self.content = content

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def get(self, name: str, kind: type) -> Any:
        """An entry of one of the ``KINDS``."""
        if name not in self.content:
            raise self.wrong(f"it lacks {name}")
        value = self.content[name]
        if not isinstance(value, kind):
            raise self.wrong(f"{name} is a {type(value).__name__}, expected {KINDS[kind]}")
        return value

    def part(self, name: str) -> "Entries":
        """The entries of an entry."""
        return Entries(self.get(name, dict), f"{self.place}: {name}")

    def parts(self, name: str, least: int = 0) -> list["Entries"]:
        """The entries of each item of a list, which has at least ``least`` items."""
        values = self.get(name, list)
        if len(values) < least:
            raise self.wrong(f"{name} has {len(values)} entries, expected at least {least}")
        return [Entries(each, f"{self.place}: {name}[{i}]") for i, each in enumerate(values)]

    def number(self, name: str) -> float:
        """A number, which may be infinite or NaN."""
        value = self.content.get(name)
        if not _is_number(value):
            raise self._unexpected(name, "a number")
        return value

    def positive(self, name: str) -> float:
        """A positive, finite number."""
        value = self.content.get(name)
        if not (_is_number(value) and 0 < value < math.inf):
            raise self._unexpected(name, "a positive number")
        return value

    def whole(self, name: str, low: int = 0, high: float = math.inf) -> int:
        """A whole number between two others."""
        value = self.content.get(name)
        if isinstance(value, bool) or not (isinstance(value, int) and low <= value <= high):
            limits = f"from {low} on" if high == math.inf else f"between {low} and {high}"
            raise self._unexpected(name, f"a whole number {limits}")
        return value

    def each(self, name: str, kind: type | UnionType, expected: str, least: int = 0) -> list:
        """A list of at least ``least`` values of a type, which messages call ``expected``."""
        values = self.get(name, list)
        if len(values) < least or any(not isinstance(each, kind) or isinstance(each, bool) for each in values):
            raise self.wrong(f"{name} should hold {expected}{f', at least {least}' if least else ''}")
        return values

    def names(self, name: str, expected: Iterable[str]) -> "Entries":
        """:meth:`part`, which has exactly these names."""
        found, expected = self.part(name), set(expected)
        present = found.content.keys()
        for problem, some in (("lacks", expected - present), ("has unknown", present - expected)):
            if some:
                raise found.wrong(f"it {problem} {', '.join(sorted(map(str, some)))}")
        return found

    def plain(self, name: str) -> dict:
        """Names and values that JSON could hold."""
        found = self.get(name, dict)
        if not _is_plain(found):
            raise self.wrong(f"{name} should hold numbers, text, lists, and names and values")
        return found

    def tensor(self, name: str, like: Tensor | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor with the dtype and shape of ``like``, or with this shape."""
        value = self.get(name, Tensor)
        expected = tuple(like.shape) if like is not None else shape
        if expected is not None and tuple(value.shape) != expected:
            raise self.wrong(f"{name} has shape {tuple(value.shape)}, expected {expected}")
        if like is not None and value.dtype != like.dtype:
            raise self.wrong(f"{name} is of {value.dtype}, expected {like.dtype}")
        return value

    def floats(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor of finite numbers in float32 or float64."""
        value = self.tensor(name, shape=shape)
        if value.dtype not in (torch.float32, torch.float64) or not value.isfinite().all():
            raise self.wrong(f"{name} should hold finite numbers in float32 or float64")
        return value

    def positions(self, name: str, n: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor (M,) of at least one of the numbers 0 to n - 1."""
        value = self.tensor(name, shape=shape)
        if value.dtype != torch.int64 or value.dim() != 1 or not len(value) or value.min() < 0 or value.max() >= n:
            raise self.wrong(f"{name} should hold whole numbers between 0 and {n - 1}")
        return value

    def state(self, name: str, expected: Mapping[str, Tensor], finite: Iterable[str] = ()) -> dict[str, Tensor]:
        """A module's parameters and buffers, of the names, shapes and dtypes ``expected``, some of them ``finite``."""
        found = self.names(name, expected)
        for each, like in expected.items():
            found.tensor(each, like=like)
        for each in finite:
            if not found.content[each].isfinite().all():
                raise found.wrong(f"{each} is not finite")
        return found.content

    def wrong(self, what: str) -> Damaged:
        """The error with this message."""
        return Damaged(f"{self.place} is damaged, or of another version of pyro_vmm: {what}")

    def _unexpected(self, name: str, expected: str) -> Damaged:
        if name not in self.content:
            return self.wrong(f"it lacks {name}")
        value = self.content[name]
        shown = repr(value) if _is_number(value) or isinstance(value, str) else f"a {type(value).__name__}"
        return self.wrong(f"{name} is {shown}, expected {expected}")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
