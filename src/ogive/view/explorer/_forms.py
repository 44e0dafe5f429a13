"""Forms made from parameters: a control for each field, with its unit and its help."""

import html
import inspect
import re
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

import ipywidgets
import yaml

from ..._trust import plain_yaml
from ...errors import ParameterError
from ...parameters import Parameter, parameters

WIDE = {"width": "auto"}


class Form:
    """Controls for the parameters of a class or function.

    Parameters
    ----------
    what : type or callable
        As `parameters` takes it.
    values : mapping, optional
        Instead of the defaults.
    leave_out : tuple of str
        Parameters that are not asked for.
    """

    def __init__(self, what: Any, values: Mapping[str, Any] | None = None, leave_out: tuple[str, ...] = ()) -> None:
        self.fields = {p.name: p for p in parameters(what) if p.name not in leave_out}
        given = values or {}
        self.controls = {name: control(p, given.get(name, p.default)) for name, p in self.fields.items()}
        self.widget = ipywidgets.VBox([row(p, self.controls[name]) for name, p in self.fields.items()])

    def values(self) -> dict[str, Any]:
        """What is set, by name; of fields that have no default and are empty, nothing.

        Raises
        ------
        ParameterError
            A field holds what cannot be read.
        """
        found = {name: value(self.fields[name], made) for name, made in self.controls.items()}
        return {
            k: v for k, v in found.items() if v is not None or self.fields[k].default is not inspect.Parameter.empty
        }

    def changed(self) -> dict[str, Any]:
        """What is set to something else than the default.

        Raises
        ------
        ParameterError
            A field that has no default is empty, or cannot be read.
        """
        given = self.values()
        for name in self.fields.keys() - given.keys():
            raise ParameterError(name, rule="must be given", fix=self.fields[name].help)
        return {k: v for k, v in given.items() if v != _plain(self.fields[k].default)}

    def on_change(self, call: Callable[..., Any]) -> None:
        """Call when a value changes."""
        for made in self.controls.values():
            made.observe(call, "value")


def control(parameter: Parameter, given: Any) -> Any:
    """The widget for one parameter."""
    style: dict[str, Any] = {"layout": ipywidgets.Layout(width="150px")}
    if parameter.kind is bool:
        made: Any = ipywidgets.Checkbox(value=bool(given), indent=False, **style)
    elif parameter.choices:
        made = ipywidgets.Dropdown(options=parameter.choices, value=str(given), **style)
    elif parameter.kind in (int, float) and isinstance(given, int | float):
        kind = ipywidgets.IntText if parameter.kind is int else ipywidgets.FloatText
        made = kind(value=given, continuous_update=False, **style)
    else:
        empty = given is None or given is inspect.Parameter.empty
        made = ipywidgets.Text("" if empty else _written(given), continuous_update=False, **style)
    made.tooltip = parameter.help
    made.add_class(f"ogive-{parameter.name.replace('_', '-')}")
    return made


def row(parameter: Parameter, made: Any) -> ipywidgets.HBox:
    """Name, control, unit and what it means; the whole help when the pointer rests on it."""
    name = ipywidgets.HTML(f"<label>{parameter.name.replace('_', ' ')}</label>", layout={"width": "125px"})
    first = re.split(r"(?<=[^.][.;])\s", parameter.help, maxsplit=1)[0].rstrip(".;")
    told = f'<div class="ogive-help" title="{html.escape(parameter.help)}">{_code(first)}</div>'
    unit = f'<span class="ogive-unit">{html.escape(parameter.unit)}</span>'
    return ipywidgets.HBox(
        [name, made, ipywidgets.HTML(unit, layout={"width": "70px"}), ipywidgets.HTML(told, layout={"flex": "1 1 0"})],
        layout={"align_items": "center"},
    )


def button(
    text: str, name: str, call: Callable[[], Any] | None = None, *, icon: str = "", **how: Any
) -> ipywidgets.Button:
    """A button that is as wide as its text, and findable by its class.

    Parameters
    ----------
    text, name : str
        What it says; its class, without `ogive-`.
    call : callable, optional
        Called without arguments.
    icon, **how
        As in `ipywidgets.Button`.
    """
    made = ipywidgets.Button(description=text, icon=icon, **{"layout": dict(WIDE), **how})
    made.add_class(f"ogive-{name}")
    if call is not None:
        made.on_click(lambda _: call())
    return made


def _code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def value(parameter: Parameter, made: Any) -> Any:
    """What a control says, as the parameter takes it."""
    if not isinstance(made, ipywidgets.Text):
        return made.value
    text = made.value.strip()
    if not text:
        return None
    one_of = get_origin(parameter.kind) in (Union, UnionType)
    kinds = get_args(parameter.kind) if one_of else (parameter.kind,)
    several = text[0] in "[{" and any(get_origin(kind) in (list, dict) for kind in kinds)
    if str in kinds and not several:
        return text
    try:
        return _plain(plain_yaml(text))
    except ValueError as error:
        raise ParameterError(parameter.name, rule="cannot be read", value=f"{text!r}: {error}") from None


def _plain(given: Any) -> Any:
    """Lists of a form and tuples of a default are the same."""
    return tuple(_plain(v) for v in given) if isinstance(given, list | tuple) else given


def _written(given: Any) -> str:
    text = yaml.safe_dump(list(given) if isinstance(given, tuple) else given, default_flow_style=True)
    return text.replace("\n...", "").strip()
