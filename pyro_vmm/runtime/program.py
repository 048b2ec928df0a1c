"""A list of torch's operations as the text of a Python function that makes no tensor twice."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.fx.node import map_aggregate


class Text(str):
    """Text of a program."""

    __repr__ = str.__str__


class Name(Text):
    """The name of a variable of a program."""


class Call(NamedTuple):
    """An operation.

    Arguments:
        function: the operation.
        args, kwargs: what it takes, with names in place of tensors.
        results: the names of its results.
        several: whether it returns a tuple or a list.
        changes: the memory that it changes: names of the tensors that own it.
        copies: whether the result has the values and the layout of the first argument.
    """

    function: Any
    args: tuple
    kwargs: dict
    results: tuple[Name, ...]
    several: bool = False
    changes: tuple[Name, ...] = ()
    copies: bool = False

    @property
    def names(self) -> list[Name]:
        """The names in the arguments, lists of tensors included."""
        return names_in((self.args, self.kwargs))

    @property
    def acts(self) -> bool:
        """Whether it does more than to return a result: it changes a tensor, or draws random numbers."""
        tags = self.function.tags
        return bool(self.changes) or self.function._schema.is_mutable or torch.Tag.nondeterministic_seeded in tags

    def renamed(self, same: Mapping[Name, Name]) -> "Call":
        """The same call of tensors of other names."""

        def other(value: Any) -> Any:
            return same.get(value, value) if isinstance(value, Name) else value

        return self._replace(args=map_aggregate(self.args, other), kwargs=dict(map_aggregate(self.kwargs, other)))

    def line(self) -> str:
        """The line of a program that makes the call."""
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        results = ", ".join(self.results) + ("," if self.several else "")
        call = f"{variable(self.function)}({', '.join(given)})"
        return f"{results} = {call}" if self.results else call


def variable(function: Any) -> Name:
    """The variable of a program that holds an operation."""
    return Name(function.name().replace("::", "_").replace(".", "_"))


def names_in(values: Any) -> list[Name]:
    """The names in a structure of tuples, lists and dicts."""
    found: list[Name] = []
    map_aggregate(values, lambda value: found.append(value) if isinstance(value, Name) else None)
    return found


class Program(NamedTuple):
    """A list of operations, and what is known of their tensors.

    Arguments:
        calls: the operations.
        owners: for the name of each tensor that of the one whose memory it shares; its own if it has memory of its own.
        tensors: the names of tensors from before the operations, whose values may change between two runs.
        objects: the names of other things from before them.
    """

    calls: Sequence[Call]
    owners: Mapping[Name, Name]
    tensors: Collection[Name]
    objects: Collection[Name]

    def shortened(self, returned: Sequence[Name]) -> tuple["Program", list[Name]]:
        """Without operations that repeat an earlier one, and the names of the returned tensors then.

        An operation repeats another if it takes the same tensors, their values have not changed in between, and nothing
        changes either result.
        """
        last = self._last_changes()
        same: dict[Name, Name] = {}
        changed: dict[Name, int] = {}
        made: dict[tuple, tuple[int, tuple[Name, ...]]] = {}
        calls = []
        for i, call in enumerate(self.calls):
            call = call.renamed(same)
            changed.update(dict.fromkeys(call.changes, i))
            lasting = all(last.get(self._owner(name), -1) < i for name in call.results)
            if call.acts or not lasting:
                calls.append(call)
            elif call.copies and last.get(self._owner(call.args[0]), -1) < i:
                same[call.results[0]] = call.args[0]
            else:
                key = call.function, repr((call.args, call.kwargs))
                before, results = made.get(key, (-1, ()))
                if before >= 0 and all(changed.get(self._owner(name), -1) < before for name in call.names):
                    same.update(zip(call.results, results, strict=True))
                else:
                    made[key] = i, call.results
                    calls.append(call)
        return self._replace(calls=calls), [same.get(name, name) for name in returned]

    def text(self, returned: Sequence[Name], name: str = "replay", arguments: Sequence[Name] = ()) -> str:
        """The text of a function, and before it of what is the same at every run.

        It deletes a tensor after its last use, and leaves out an operation whose result is not used.

        Arguments:
            returned: the names of the tensors that it returns.
            name: its name.
            arguments: the names of the tensors that it takes.
        """
        needed, read = [], set(returned)
        for call in reversed(self.calls):
            if call.acts or read.intersection(call.results):
                needed.append(call)
                read.update(call.names)
        first, lasting = self._made_before(reversed(needed))
        kept, lines = {*returned, *lasting}, []
        for call in needed:
            if lasting.issuperset(call.results) and not call.acts:
                continue
            unread = {*call.names, *call.results} - kept
            if unread:  # for their memory
                lines.append(f"del {', '.join(sorted(unread))}")
            kept |= unread
            lines.append(call.line())
        body = [*reversed(lines), f"return {', '.join(returned)},"]
        before = [call.line() for call in first]
        return "\n".join([*before, f"def {name}({', '.join(arguments)}):", *(f"    {line}" for line in body)])

    def _made_before(self, calls: Iterable[Call]) -> tuple[list[Call], set[Name]]:
        """Operations that can run once, before all runs, and the names of all that is available then.

        These are views of tensors that exist before the runs (a view shows later values, too), and tensors made from
        plain numbers alone.
        """
        last = self._last_changes()
        fixed, available, first = set(self.objects), {*self.objects, *self.tensors}, []
        for call in calls:
            if call.acts or not call.results:
                continue
            is_view = all(self._owner(name) != name for name in call.results)
            is_fixed = fixed.issuperset(call.names) and not any(self._owner(name) in last for name in call.results)
            if is_fixed or (is_view and available.issuperset(call.names)):
                first.append(call)
                available.update(call.results)
                if is_fixed:
                    fixed.update(call.results)
        return first, available

    def _last_changes(self) -> dict[Name, int]:
        """The position of the last call that changes the memory of each owner."""
        return {name: i for i, call in enumerate(self.calls) for name in call.changes}

    def _owner(self, name: Name) -> Name:
        return self.owners.get(name, name)
