"""What can be set, and what it means: the fields of parameter classes, from their own docstrings.

The documentation of a parameter is written once, in the docstring of its dataclass or function. Forms read it here.
"""

import inspect
import re
import sys
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from typing import Any, get_type_hints

from pydantic import BaseModel


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Parameters
    ----------
    name : str
    default : Any
        `inspect.Parameter.empty` where there is none.
    kind : Any
        Its type.
    help : str
        What it means; one paragraph.
    unit : str
        As the help gives it in brackets; "" where it has none.
    choices : tuple of str
        What it may be, where that is a list of names; else empty.
    """

    name: str
    default: Any
    kind: Any
    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()


def parameters(what: Any) -> list[Parameter]:
    """The parameters of a dataclass, a function or a section of the run file.

    Parameters
    ----------
    what : type or callable
        With a docstring in the style of numpy, or a pydantic model with descriptions.

    Examples
    --------
    >>> from ogive import NCC
    >>> step = next(p for p in parameters(NCC) if p.name == "step")
    >>> step.default, step.unit, step.help
    (8, 'px', 'Grid step between vectors [px]; the output cell.')
    >>> next(p.choices for p in parameters(NCC) if p.name == "refine")
    ('translation', 'quadric', 'fixed', 'affine')
    """
    if inspect.isclass(what) and issubclass(what, BaseModel):
        return [
            _parameter(name, info.get_default(call_default_factory=True), info.annotation, "", info.description or "")
            for name, info in what.model_fields.items()
        ]
    told, kinds = _told(what), get_type_hints(what)
    return [
        _parameter(name, default, kinds.get(name, Any), *told.get(name, ("", "")))
        for name, default in _defaults(what).items()
    ]


def _told(what: Any) -> dict[str, tuple[str, str]]:
    """Type and help of every parameter, those included that are only "as in" another class or function."""
    # A subclass says only what it changes.
    family = reversed(what.__mro__) if inspect.isclass(what) else (what,)
    told: dict[str, tuple[str, str]] = {}
    for member in family:
        told |= documented(inspect.cleandoc(member.__doc__ or ""))
    for name, (kind, about) in told.items():
        other = re.search(r"[Aa]s (?:for|in) `(\w+)`\.?$", about)
        if other:
            kind, there = _told(getattr(sys.modules[what.__module__], other[1])).get(name, (kind, ""))
            told[name] = kind, f"{about[: other.start()].rstrip(' ,')} {there}".strip()
    return told


def _defaults(what: Any) -> dict[str, Any]:
    empty = inspect.Parameter.empty
    if is_dataclass(what):
        return {f.name: empty if f.default is MISSING else f.default for f in fields(what)}
    return {name: p.default for name, p in inspect.signature(what).parameters.items()}


def documented(text: str) -> dict[str, tuple[str, str]]:
    """Type and help of every parameter in a docstring.

    Parameters
    ----------
    text : str
        A docstring in the style of numpy.

    Examples
    --------
    >>> documented(inspect.getdoc(documented))
    {'text': ('str', 'A docstring in the style of numpy.')}
    """
    found = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}$|\Z)", text, re.MULTILINE | re.DOTALL)
    out: dict[str, tuple[str, str]] = {}
    section = found[1] + "\n" if found else ""
    for entry in re.finditer(r"^(\S[^\n]*)\n((?:[ \t]+[^\n]*\n?|\n(?=[ \t]))*)", section, re.MULTILINE):
        names, _, kind = entry[1].partition(" : ")
        about = re.sub(r"\s+", " ", entry[2]).strip()
        out |= {name.strip().lstrip("*"): (kind.strip(), about) for name in names.split(",")}
    return out


def _parameter(name: str, default: Any, kind: Any, said: str, about: str) -> Parameter:
    unit = re.search(r"\[([^\][]{1,20})\]", about)
    return Parameter(name, default, kind, about, unit[1] if unit and unit[1] != "1" else "", _choices(said, about))


def _choices(said: str, about: str) -> tuple[str, ...]:
    """Names in braces, or the keys of the registry that the help points to."""
    braces = re.search(r"\{([^}]*)\}", said)
    if braces:
        return tuple(part.strip().strip("\"'") for part in braces[1].split(","))
    registry = re.search(r"a name in `(ogive[\w.]*)\.(\w+)`", about)
    return tuple(getattr(import_module(registry[1]), registry[2])) if registry else ()
