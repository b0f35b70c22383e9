"""Builds a command line from the fields of a dataclass: each field declares its default, range and help.

@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    steps: int = option(100, "optimizer steps", least=1)      ─▶ --steps 100
    resume: bool = option(False, "go on")                     ─▶ --resume
    layers: tuple[str, ...] = option((), "their names")       ─▶ --layers a b --layers c
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar

Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True)
class Option:
    """The command-line option of a field.

    Attributes:
        help: a phrase; the default is appended if there is one.
        least, most: range of a number, inclusive.
        step: the number is a multiple of it.
        choices: allowed values.
        parse: text to value, where the field's type does not do; raises ArgumentTypeError or ValueError.
        metavar: name of the value in the help.
        default_factory: returns the default for this machine.
        instead_of: another field that excludes this one.
    """

    help: str
    least: float = -math.inf
    most: float = math.inf
    step: int = 1
    choices: tuple[str, ...] | None = None
    parse: Callable[[str], Any] | None = None
    metavar: str | tuple[str, ...] | None = None
    default_factory: Callable[[], Any] | None = None
    instead_of: str | None = None


def option(default: Any, help: str, **more: Any) -> Any:
    """A field with a command-line option; `...` as default makes it required. Arguments as `Option`."""
    told = Option(help, **more)
    if told.default_factory is not None:
        return field(default_factory=told.default_factory, metadata={"option": told})
    return field(default=MISSING if default is ... else default, metadata={"option": told})


def parser_for(settings: type[Any], program: str, description: str) -> argparse.ArgumentParser:
    """The parser of a dataclass whose fields were all made with `option`."""
    parser = argparse.ArgumentParser(prog=program, description=description, formatter_class=_WithDefaults)
    kinds = typing.get_type_hints(settings)
    groups: dict[str, Any] = {}
    for entry in dataclasses.fields(settings):
        told: Option = entry.metadata["option"]
        if told.instead_of:
            groups[entry.name] = groups[told.instead_of] = parser.add_mutually_exclusive_group()
    for entry in dataclasses.fields(settings):
        told = entry.metadata["option"]
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        how = _how_to_take(kinds[entry.name], told, default)
        groups.get(entry.name, parser).add_argument(flag_of(entry.name), help=told.help, **how)
    return parser


def parse(settings: type[Settings], parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Settings:
    """Read and check a command line; argparse prints what is wrong and exits with status 2."""
    given = vars(parser.parse_args(argv))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if problem := out_of_range(settings, values):
        parser.error(problem)
    return settings(**values)


def out_of_range(settings: type[Any], values: dict[str, Any]) -> str | None:
    """A message about the first number outside of its option's range, or between its steps; None if there is none."""
    for entry in dataclasses.fields(settings):
        told, value = entry.metadata["option"], values[entry.name]
        bounded = (told.least, told.most) != (-math.inf, math.inf)
        if bounded and isinstance(value, int | float) and not told.least <= value <= told.most:
            wanted = f"{told.least:g} or more" if told.most == math.inf else f"{told.least:g} to {told.most:g}"
            return f"{flag_of(entry.name)} is {wanted}, got {value:g}."
        if told.step > 1 and value % told.step:
            return f"{flag_of(entry.name)} is a multiple of {told.step}, got {value}."
    return None


def flag_of(name: str) -> str:
    """`batch_size` → `--batch-size`."""
    return f"--{name.replace('_', '-')}"


def type_of(hint: Any) -> Any:
    """The type of a field's values: `int` of `int | None`."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _how_to_take(hint: Any, told: Option, default: Any) -> dict[str, Any]:
    """Arguments of argparse's `add_argument` for a field of this type."""
    kind = type_of(hint)
    if kind is bool:
        return {"action": "store_true"}
    how: dict[str, Any] = {"required": True} if default is MISSING else {"default": default}
    if told.metavar:
        how["metavar"] = told.metavar
    if typing.get_origin(kind) is tuple:
        kind, *rest = typing.get_args(kind)
        how |= {"nargs": "*", "action": "extend", "default": []} if rest == [...] else {"nargs": 1 + len(rest)}
    return how | {"type": told.parse or kind, "choices": told.choices}


class _WithDefaults(argparse.HelpFormatter):
    """Appends `(default: …)` to the help of options with a default, unless it is already there."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        untold = default not in (None, [], (), "", argparse.SUPPRESS) and not isinstance(default, bool)
        if not untold or "(default" in (action.help or ""):
            return action.help
        return f"{action.help} (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"
