"""Builds a command line from the fields of a dataclass: each field declares its default, range and help.

@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    steps: int = option(100, "optimizer steps", minimum=1)      ─▶ --steps 100
    resume: bool = option(False, "go on")                     ─▶ --resume
    layers: tuple[str, ...] = option((), "their names")       ─▶ --layers a b --layers c
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field
from typing import Any, TypeVar

Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True)
class Option:
    """The command-line option of a field.

    Attributes:
        how: arguments of argparse's `add_argument`: help, choices, metavar; type, where the field's type does not do.
        minimum, maximum: range of a number, inclusive.
        step: the number is a multiple of it.
        instead_of: another field that excludes this one.
    """

    how: dict[str, Any]
    minimum: float = -math.inf
    maximum: float = math.inf
    step: int = 1
    instead_of: str | None = None


def option(
    default: Any,
    help: str,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    step: int = 1,
    instead_of: str = "",
    **how: Any,
) -> Any:
    """A field with a command-line option; arguments as `Option`. A default of `...` makes it required, a function returns the default."""
    metadata = {"option": Option(how | {"help": help}, minimum, maximum, step, instead_of)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=MISSING if default is ... else default, metadata=metadata)


def parser_for(settings: type[Any], program: str, description: str) -> argparse.ArgumentParser:
    """The parser of a dataclass whose fields were all made with `option`."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    kinds = typing.get_type_hints(settings)
    groups: dict[str, Any] = {}
    for entry in dataclasses.fields(settings):
        if other := entry.metadata["option"].instead_of:
            groups[entry.name] = groups[other] = parser.add_mutually_exclusive_group()
    for entry in dataclasses.fields(settings):
        groups.get(entry.name, parser).add_argument(flag_of(entry.name), **_how_to_take(kinds[entry.name], entry))
    return parser


def parse(settings: type[Settings], parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Settings:
    """Read and check a command line; argparse prints what is wrong and exits with status 2."""
    given = vars(parser.parse_args(argv))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    for entry in dataclasses.fields(settings):  # type: ignore[arg-type]  # a dataclass, as `parser_for` takes
        limits, value, flag = entry.metadata["option"], values[entry.name], flag_of(entry.name)
        bounded = (limits.minimum, limits.maximum) != (-math.inf, math.inf)
        if bounded and isinstance(value, int | float) and not limits.minimum <= value <= limits.maximum:
            wanted = f"{limits.minimum:g} or more" if limits.maximum == math.inf else f"{limits.minimum:g} to {limits.maximum:g}"
            parser.error(f"{flag} is {wanted}, got {value:g}.")
        if limits.step > 1 and value % limits.step:
            parser.error(f"{flag} is a multiple of {limits.step}, got {value}.")
    return settings(**values)


def flag_of(name: str) -> str:
    """`batch_size` → `--batch-size`."""
    return f"--{name.replace('_', '-')}"


def type_of(hint: Any) -> Any:
    """The type of a field's values: `int` of `int | None`."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _how_to_take(hint: Any, entry: Field[Any]) -> dict[str, Any]:
    """Arguments of argparse's `add_argument` for a field of this type; the help names the default, unless it does already."""
    kind = type_of(hint)
    how: dict[str, Any] = entry.metadata["option"].how
    if kind is bool:
        return how | {"action": "store_true"}
    default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    if default not in (MISSING, None, (), "") and "(default" not in how["help"]:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        how = how | {"help": f"{how['help']} (default: {shown})"}
    how = how | ({"required": True} if default is MISSING else {"default": default})
    if typing.get_origin(kind) is tuple:
        kind, *rest = typing.get_args(kind)
        how |= {"nargs": "*", "action": "extend", "default": []} if rest == [...] else {"nargs": 1 + len(rest)}
    return {"type": kind} | how
