"""Parts as specs: the frozen dataclasses (and plain functions) that a `Config` is made of.

A spec checks itself when it is made, and is plain data: it can be hashed, compared, replaced, and written as JSON (its
class's name and its fields). The float fields of corruptions, objectives and likelihoods are hyper-parameters. The
model holds them as arrays, so that another value needs no new compilation and each member of a population may have its
own. `bind` puts the arrays in place of the floats whenever such a part is called; the code of a part just reads
`self.beta`. A float that decides what is compiled is marked by `static`.

`register` makes your own part known by its name, as all stock parts are.
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from flaxae import errors

Part = TypeVar("Part")  # a class or a function

PARTS: dict[str, Callable[..., Any]] = {}


def register(part: Part) -> Part:
    """Make a part known by its name, so that models with it can be saved and loaded. Use it as a decorator.

    Parts are looked up in a table; nothing is imported because a file names it. So import the module that registers a
    part before you load a model that has it.

    Args:
        part: a frozen dataclass, or a function (an objective or a corruption without fields).

    Raises:
        ConfigError: it is neither, or another part has that name.
    """
    registered: Any = part
    name = registered.__name__
    params = getattr(part, "__dataclass_params__", None)
    if inspect.isclass(part) and (params is None or not params.frozen):
        raise errors.ConfigError(f"{name} can't be registered: decorate it with @dataclasses.dataclass(frozen=True).")
    there = PARTS.get(name)
    places = [f"{known.__module__}.{known.__qualname__}" for known in (there or registered, registered)]
    if places[0] != places[1]:
        raise errors.ConfigError(
            f"{places[1]} can't be registered: {places[0]} is known by the name {name} already. Choose another name."
        )
    PARTS[name] = registered
    return part


def static(default: Any) -> Any:
    """A float field that is no hyper-parameter, because it decides what is compiled."""
    return dataclasses.field(default=default, metadata={"static": True})


def to_json(value: Any) -> Any:
    """A part, or any field of one, as JSON values; `from_json` is the inverse.

    Raises:
        ConfigError: a part was not registered.
    """
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if not (inspect.isfunction(value) or dataclasses.is_dataclass(value)):
        return value
    kind: Any = value if inspect.isfunction(value) else type(value)
    if PARTS.get(kind.__name__) is not kind:
        raise errors.ConfigError(
            f"{kind.__module__}.{kind.__qualname__} can't be saved, as it has no name to load it by. Decorate it with "
            "@flaxae.register."
        )
    fields = [] if inspect.isfunction(value) else dataclasses.fields(value)
    return {"kind": kind.__name__, **{field.name: to_json(getattr(value, field.name)) for field in fields}}


def from_json(value: Any, what: str = "part") -> Any:
    """A part from the JSON values that `to_json` gave, looked up in the table of registered names only.

    Args:
        what: what to call it in messages.

    Raises:
        ConfigError: an unknown name or field, or a value out of range.
    """
    if isinstance(value, list):
        return tuple(from_json(item, what) for item in value)
    if not isinstance(value, Mapping):
        return value
    fields = {name: from_json(field, name) for name, field in value.items() if name != "kind"}
    name = str(value.get("kind"))
    if name not in PARTS:
        raise errors.ConfigError(
            f"{errors.unknown(what, name, PARTS)} A part of your own is known once the module that registers it is "
            "imported."
        )
    part: Any = PARTS[name]
    return part if inspect.isfunction(part) else checked(part, fields)


def checked(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from JSON values. Each must have the type of its field's default.

    Raises:
        ConfigError: an unknown or missing field, or a value of another type.
    """
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in fields:
            raise errors.ConfigError(errors.unknown(f"field of {kind.__name__}", name, fields))
        default = fields[name]
        if default is None or default is dataclasses.MISSING or is_part(value):  # checked where it was made
            continue
        allowed = {float: (int, float), list: (list, tuple)}.get(type(default), type(default))
        if not isinstance(value, allowed) or isinstance(value, bool) != isinstance(default, bool):
            raise errors.ConfigError(f"{kind.__name__}.{name} is {value!r}; expected a value like {default!r}.")
    try:
        return kind(**values)
    except TypeError as error:  # a field without a default is missing
        raise errors.ConfigError(f"{kind.__name__} can't be made of {dict(values)}: {error}.") from error


def is_part(value: Any) -> bool:
    """Whether `value` is a spec or a function, and not a plain value."""
    return inspect.isfunction(value) or (dataclasses.is_dataclass(value) and not inspect.isclass(value))


Path = tuple[str, ...]  # field names, from a part down to one of its fields


def hyper(part: Any) -> Iterator[tuple[Path, float]]:
    """The hyper-parameters of a part and of the parts inside it: the path and the value of each."""
    if not dataclasses.is_dataclass(part):
        return
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if is_part(value):
            yield from (((field.name, *path), number) for path, number in hyper(value))
        elif field.type in (float, "float") and not field.metadata.get("static"):
            yield (field.name,), float(value)


def bind(part: Any, values: Mapping[Path, Any]) -> Any:
    """A copy of the part with other hyper-parameters, mostly arrays. They are not checked."""
    bound = copy.copy(part)
    inner: dict[str, dict[Path, Any]] = {}
    for (name, *rest), value in values.items():
        if rest:
            inner.setdefault(name, {})[tuple(rest)] = value
        else:
            object.__setattr__(bound, name, value)
    for name, its in inner.items():
        object.__setattr__(bound, name, bind(getattr(part, name), its))
    return bound


def check_positive(part: Any, *names: str) -> None:
    """Raise ConfigError unless those fields are finite and above 0."""
    _check(part, names, lambda value: 0 < value < float("inf"), "finite and above 0")


def check_not_negative(part: Any, *names: str) -> None:
    """Raise ConfigError unless those fields are finite and at least 0."""
    _check(part, names, lambda value: 0 <= value < float("inf"), "finite and at least 0")


def check_sizes(part: Any, *names: str) -> None:
    """Raise ConfigError unless those fields are whole numbers above 0, or tuples of them."""
    for name in names:
        value = getattr(part, name)
        for size in value if isinstance(value, tuple) else (value,):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise errors.ConfigError(f"{type(part).__name__}.{name} is {value!r}; expected whole numbers above 0.")


def check_clip(part: Any) -> None:
    """Raise ConfigError unless the part's bounds `clip` are None or (low, high)."""
    clip = part.clip
    if clip is not None and not (len(clip) == 2 and clip[0] < clip[1]):
        raise errors.ConfigError(f"{type(part).__name__}.clip is {clip}; expected (low, high) with low below high.")


def _check(part: Any, names: tuple[str, ...], good: Callable[[float], bool], rule: str) -> None:
    for name in names:
        value = getattr(part, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not good(value):
            raise errors.ConfigError(f"{type(part).__name__}.{name} is {value!r}; it has to be {rule}.")
