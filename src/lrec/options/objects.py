"""Objects from options, and back: the arguments of an object as plain values, which a checkpoint may hold."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lrec.errors import UserError
from lrec.options.class_paths import class_path
from lrec.options.parser import OneLineParser

T = TypeVar("T")


def as_plain(value: Any) -> Any:
    """A value in the form of options: dataclasses, and functions that make optimizers, as class_path and init_args.
    TypeError if the value has no such form."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [as_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): as_plain(each) for name, each in value.items()}
    if isinstance(value, type):
        return class_path(value)
    if isinstance(value, partial):
        kind = next(each for each in (value.func, *value.args) if isinstance(each, type))
        return {"class_path": class_path(kind), "init_args": as_plain(value.keywords)}
    # If a subclass of a dataclass has an __init__ of its own, its fields are not its arguments.
    maker = next(each for each in type(value).__mro__ if "__init__" in vars(each))
    if "__dataclass_params__" in vars(maker):
        arguments = {each.name: as_plain(getattr(value, each.name)) for each in fields(value) if each.init}
        return {"class_path": class_path(type(value)), "init_args": arguments}
    raise TypeError(f"{type(value).__name__} is no plain value")


def all_as_plain(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments that have plain values, and the types of the others, by name."""
    plain, others = dict[str, Any](), dict[str, str]()
    for name, value in arguments.items():
        try:
            plain[name] = as_plain(value)
        except TypeError:
            others[name] = type(value).__name__
    return plain, others


def from_plain(kind: type[T], plain: dict[str, Any], changed: dict[str, Any]) -> T:
    """An object from arguments that `as_plain` returned, with those in `changed` instead; UserError if one is wrong."""
    parser = OneLineParser()
    parser.add_class_arguments(kind, skip=set(changed), fail_untyped=False)
    kept = {name: value for name, value in plain.items() if name not in changed}
    try:
        arguments = parser.instantiate(parser.parse_object(kept)).as_dict()
    except UserError as error:
        raise UserError(f"{class_path(kind)} cannot be made as it was: {error}") from error
    return kind(**arguments, **changed)


def from_config(config: dict[str, Any], name: str, base: type[T]) -> T:
    """The object that entry `name` of a run's configuration describes: `base`, or a subclass by its class path.
    UserError if the class does not exist, or if it or its options do not fit."""
    parser = OneLineParser()
    parser.add_subclass_arguments(base, name, fail_untyped=False, required=True)
    # A copy, because jsonargparse changes lists of classes in place.
    return parser.instantiate(parser.parse_object({name: deepcopy(config[name])}))[name]
