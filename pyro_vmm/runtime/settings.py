"""A setting is stated once, as a field of a dataclass: signatures, checks, files and options follow from it."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from typing_extensions import dataclass_transform

from pyro_vmm.runtime.checks import check_choice, check_positive, check_whole

#: When the continuation of an interrupted run may have another value.
Resume = Literal["never", "always", "if diverged", "if pretraining diverged"]
T = TypeVar("T", bound=type)
#: The value of a setting that follows from the data.
Auto = Literal["auto"]
AUTO: Auto = "auto"


@dataclass(frozen=True)
class Values:
    """The values that a setting may have.

    Arguments:
        check: takes the name and the value, and raises ``ValueError`` for a wrong one.
        type: the type of a value on the command line.
        choices: a tuple or a registry of names, if there are no other values on the command line.
        names: a registry of names, for the help, if there are other values besides.
        several: whether the value is a list of these.
        or_none: whether None is a value, too.
        never: whether 0 on the command line stands for None.
        auto: whether "auto" is a value, too; it follows from the data.
    """

    check: Callable[[str, Any], object] = lambda name, value: None
    type: Callable = str
    choices: Iterable | None = None
    names: Iterable[str] = ()
    several: bool = False
    or_none: bool = False
    never: bool = False
    auto: bool = False


WHOLE = Values(check_whole, int)
POSITIVE = Values(check_positive, float)
TRUTH = Values(lambda name, value: check_choice(name, value, (True, False)), bool)


def one_of(choices: tuple) -> Values:
    """One of these choices."""
    return Values(lambda name, value: check_choice(name, value, choices), str, choices)


def or_auto(values: Values) -> Values:
    """One of these values, or "auto"."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or value != AUTO:
            values.check(name, value)

    return replace(values, check=check, auto=True)


def or_none(values: Values) -> Values:
    """One of these values, or None."""

    def check(name: str, value: Any) -> None:
        if value is None:
            return
        try:
            values.check(name, value)
        except ValueError as error:
            raise ValueError(f"{error}, or None") from error

    return replace(values, check=check, or_none=True)


def or_never(values: Values) -> Values:
    """One of these values, all above 0, or None for never, which is 0 on the command line."""
    return replace(or_none(values), never=True)


@dataclass(frozen=True)
class Setting:
    """The attributes of a setting other than its name, type and default.

    Arguments:
        help: one line, for the command line.
        values: the values that it may have.
        option: its name on the command line; empty for that of the field, None for no option.
        common: whether ``--help`` shows it, or ``--help-all`` alone.
        metavar: the placeholder of a value in the help.
        unset: the meaning of a default of None, in words.
        resume: whether the continuation of a run may have another value.
    """

    help: str
    values: Values = Values()
    option: str | None = ""
    common: bool = False
    metavar: str | None = None
    unset: str = ""
    resume: Resume = "never"


def setting(*, default: Any, help: str, values: Values = Values(), kw_only: bool = True, **about: Any) -> Any:
    """A field of a dataclass of settings; ``about`` are further arguments of :class:`Setting`."""
    metadata = {"setting": Setting(help, values, **about)}
    return field(default=default, kw_only=kw_only, metadata=metadata)


def changed(group: type, name: str, *, default: Any = dataclasses.MISSING, **changes: Any) -> Any:
    """A setting of another group, with another default or other values.

    Without the argument ``default``, a type checker assumes that the field has none.
    """
    before = group.__dataclass_fields__[name]
    about = replace(settings_of(group)[name], **changes)
    kept = before.default if default is dataclasses.MISSING else default
    return field(default=kept, kw_only=True, metadata={"setting": about})


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(setting, changed, field))
def settings(cls: T) -> T:
    """Make a dataclass of settings: a group of them, or an estimator, whose constructor takes them by name.

    The fields of the last base come first. A field stated again may give its default alone.
    """
    return suggesting(dataclass(eq=False, repr=False, kw_only=True)(cls))


def suggesting(cls: T) -> T:
    """A dataclass whose constructor suggests the nearest name for one that it does not know."""
    plain, names = cls.__init__, {each.name for each in fields(cls)}

    @functools.wraps(plain)
    def __init__(self, *args, **given):
        for name in given:
            if name not in names:
                problem = f"{type(self).__name__}.__init__() got an unexpected keyword argument {name!r}"
                raise TypeError(f"{problem}{nearest(name, names)}")
        plain(self, *args, **given)

    cls.__init__ = __init__
    return cls


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; did you mean ...?" with the most similar name, or nothing."""
    found = get_close_matches(name, list(names), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def stated_in(cls: type, name: str) -> type:
    """The class that states a setting of this dataclass, rather than another default alone."""
    for base in cls.__mro__:
        stated = vars(base).get("__dataclass_fields__", {})
        if name in inspect.get_annotations(base) and name in stated and "setting" in stated[name].metadata:
            return base
    raise TypeError(f"{cls.__name__} has no setting {name!r}")


def group_of(cls: type, name: str) -> type:
    """The class that states a setting of this dataclass first."""
    return next(base for base in reversed(cls.__mro__) if name in inspect.get_annotations(base))


@functools.cache  # the command line calls it hundreds of times
def settings_of(cls: type) -> Mapping[str, Setting]:
    """The settings of a dataclass by name, in the order of its fields."""
    stated = ((each.name, stated_in(cls, each.name)) for each in fields(cls))
    return MappingProxyType({name: group.__dataclass_fields__[name].metadata["setting"] for name, group in stated})


def defaults(cls: type) -> dict[str, Any]:
    """The default of each setting."""
    return {each.name: each.default for each in fields(cls)}


def check_settings(given: Any) -> None:
    """Raise ``ValueError`` for the first value of a dataclass that its setting does not take."""
    for name, each in settings_of(type(given)).items():
        each.values.check(name, getattr(given, name))


def resumable(cls: type, *when: Resume) -> tuple[str, ...]:
    """The names of settings that may differ in these cases between a run and its continuation."""
    return tuple(name for name, each in settings_of(cls).items() if each.resume in when)
