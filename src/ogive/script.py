"""`script`: a session as a Python program, the public calls that `ogive.run` makes with the values written out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._trust import without_secrets
from .kernels import KERNELS
from .run import MATCHES, SERIES, VELOCITY, RunConfig, pair_rules


@dataclass(frozen=True)
class View:
    """What was looked at.

    Parameters
    ----------
    store : str
        Name of the store.
    layer : str
        See `view.layer_map`.
    when : int or None
        Position in time; None: median.
    points : dict of str to (x, y)
        Places kept [m].
    line : (x, y) or None
        The place whose flow line was traced, if one was.
    """

    store: str = "series"
    layer: str = "speed"
    when: int | None = None
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    line: tuple[float, float] | None = None


def script(config: RunConfig | None = None, stores: Mapping[str, Any] | None = None, view: View | None = None) -> str:
    """A Python program that repeats a session: the run, if there was one, and the pictures of what was looked at.

    It names every value, so that it can be read, changed and published; addresses have lost their passwords and
    signatures. Run again, it goes on with the matches that are there; pictures and tables are replaced.

    Parameters
    ----------
    config : RunConfig, optional
        A run; without it the stores are opened as they are.
    stores : mapping name -> path or URL, optional
        Other stores that were looked at.
    view : View, optional
        What was looked at; default the median speed.

    Returns
    -------
    str
        Ready to be saved as `session.py`.

    Examples
    --------
    >>> print(script(stores={"series": "series.zarr"}))
    '''A session of ogive.'''
    <BLANKLINE>
    import ogive as og
    <BLANKLINE>
    <BLANKLINE>
    def main() -> None:
        series = og.open_velocity("series.zarr")
        og.view.layer_map(series, "speed", path="speed.png")
    <BLANKLINE>
    <BLANKLINE>
    if __name__ == "__main__":
        main()
    <BLANKLINE>
    """
    imports, lines = _run(config) if config is not None else ([], [])
    made = {"matches", "velocity", "series"} if config is not None else set()
    lines += [f"{_name(n)} = og.open_velocity({_text(p)})" for n, p in (stores or {}).items() if n not in made]
    lines += _pictures(view or View(_shown(config, stores)))
    body = "".join(f"    {line}\n" if line else "\n" for line in lines)
    plain = sorted({line for line in imports if "ogive" not in line})
    head = "\n".join([*plain, *([""] if plain else []), "import ogive as og", *sorted({*imports} - {*plain})])
    text = f"'''A session of ogive.'''\n\n{head}\n\n\ndef main() -> None:\n{body}\n\n"
    return without_secrets(text + 'if __name__ == "__main__":\n    main()\n')


def _shown(config: RunConfig | None, stores: Mapping[str, Any] | None) -> str:
    if config is not None:
        return "series" if config.invert is not None else "velocity"
    return next(iter(stores or {"series": ""}))


def _run(config: RunConfig) -> tuple[list[str], list[str]]:
    """Imports and lines of a run, in the order of `run.run`."""
    query, part, ground = config.search, config.cube, config.stable
    rules = {k: v for k, v in vars(pair_rules(config.pairs)).items() if k in config.pairs}
    kernel = type(config.make_kernel())
    parameters = {k: v for k, v in config.kernel.items() if k != "name"}
    search = _given(query, {"sensor", "max_cloud", "source", "limit", "outlines", "files"})
    left = query.model_dump().get("leave_out")
    imports = ["from pathlib import Path", "from ogive.cube import usable_share", "from ogive.run import without_empty"]
    imports.append(f"from {_home(kernel)} import {kernel.__name__}")
    how = {"workers": config.workers} if config.workers else {}
    lines = [f"folder = Path({_text(config.output)})", "folder.mkdir(exist_ok=True)"]
    client = ""
    if config.cluster:
        lines.append(f"client = {_call('og.cluster.connect', _text(config.cluster), how)}")
        client = "client=client"
    where = ", ".join(filter(None, (client, *(f"{k}={v!r}" for k, v in how.items()))))
    write = f", {where})" if where else ")"
    lines += ["", f"items = {_call('og.search', _text(query.aoi), {'datetime': query.datetime, **search})}"]
    lines += [f"items = [item for item in items if item.id not in {left!r}]"] if left else []
    grid = {k: getattr(part, k) for k in ("resolution", "loader", "resampling")}
    grid |= {"sign": part.sign} if part.sign else {}
    if query.aoi is not None:
        imports.append("from ogive.aoi import resolve_aoi")
        lines.append(f"area = resolve_aoi({_text(query.aoi)}, {_text(query.outlines)})")
        grid |= {"buffer": part.buffer}
    area = ", aoi=area" if query.aoi is not None else ""
    lines += [
        f"cube = {_call('og.open_cube', f'items, {part.band!r}{area}', grid)}",
        f"cube = without_empty(cube, usable_share(items, cube, {part.band!r}, sign={part.sign!r}))",
        f"pairs = {_call('og.make_pairs', 'cube', rules)}",
        f"kernel = {_call(kernel.__name__, '', parameters)}",
        f"matching = og.track(cube, pairs, kernel, stack={config.stack!r}, unreadable={config.unreadable!r})",
        f"og.write(matching, folder / {_text(MATCHES)}{write}",
        "", f"velocity = matches = og.open_velocity(folder / {_text(MATCHES)})",
    ]  # fmt: skip
    if ground.ice is not None or ground.rock is not None:
        known = {k: getattr(ground, k) for k in ("ice", "rock", "water", "crs", "buffer")}
        lines += [f"stable = {_call('og.masks.stable', 'matches', known)}",
                  "velocity = og.correct.stable_ground(velocity, stable)"]  # fmt: skip
    lines += [f"velocity = {_call(f'og.filters.{name}', 'velocity', given)}" for name, given in config.filters.items()]
    lines += [f"og.write(velocity, folder / {_text(VELOCITY)}, overwrite=True{write if where else ')'}",
              f"velocity = og.open_velocity(folder / {_text(VELOCITY)})"]  # fmt: skip
    if config.invert is not None:
        options = {"method": config.invert.method, "every": config.invert.every}
        lines += ["", f"og.write({_call('og.invert', 'velocity', options)}, folder / {_text(SERIES)}, "
                  f"overwrite=True{write if where else ')'}",
                  f"series = og.open_velocity(folder / {_text(SERIES)})"]  # fmt: skip
    return imports, [*lines, ""]


def _pictures(view: View) -> list[str]:
    """Lines that draw what was looked at."""
    store, line = _name(view.store), []
    picture = {"when": view.when, "path": f"{view.layer}.png"}
    out = [_call("og.view.layer_map", f"{store}, {_text(view.layer)}", picture)]
    if view.points:
        places = {name: tuple(round(float(c), 2) for c in point) for name, point in view.points.items()}
        out += [f"points = {places!r}", f'og.view.plot_series({store}, points, path="series.png")',
                f'og.export.to_points({store}, "points.csv", points, overwrite=True)']  # fmt: skip
    if view.line is not None:
        x, y = (round(float(c), 2) for c in view.line)
        line = [f"line = og.flowline({store}, {x}, {y})", f'og.view.hovmoller({store}, line, path="through-time.png")']
    return out + line


def _given(section: Any, names: set[str]) -> dict[str, Any]:
    """Fields of a section that are not empty."""
    return {
        n: getattr(section, n) for n in type(section).model_fields if n in names and getattr(section, n) is not None
    }


def _home(kernel: type) -> str:
    return "ogive" if kernel is KERNELS["ncc"] else kernel.__module__


def _call(function: str, first: str, options: Mapping[str, Any]) -> str:
    """A call as text; what is None is left out, as it is the default everywhere here."""
    parts = [first, *(f"{name}={_text(value)}" for name, value in options.items() if value is not None)]
    return f"{function}({', '.join(p for p in parts if p)})"


def _text(value: Any) -> str:
    """A value as Python writes it, texts in double quotes; lists of rules are tuples."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return repr(value)


def _name(store: str) -> str:
    """The name of a store as one of Python.

    Examples
    --------
    >>> _name("ITS_LIVE v2"), _name("2020")
    ('ITS_LIVE_v2', 'store_2020')
    """
    plain = "".join(c if c.isalnum() or c == "_" else "_" for c in store)
    return plain if plain.isidentifier() and plain not in _TAKEN else f"store_{plain}"


_TAKEN = {"og", "items", "cube", "pairs", "kernel", "stable", "area", "folder", "points", "line", "client", "main"}
