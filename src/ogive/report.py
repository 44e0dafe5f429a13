"""One page that explains a result: facts, tables, figures, provenance, in one HTML file that needs nothing else."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd

from .errors import ParameterError
from .export import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = "–"
_TIMES = (np.datetime64, pd.Timestamp, type(pd.NaT))


def format_value(value: Any, *, digits: int = 3) -> str:
    """A table cell: floats with `digits` significant digits (whole numbers from 1000 on), dates as ISO 8601.

    Examples
    --------
    >>> [format_value(v) for v in (12.3456, 48211.7, 0.000123, 7, float("nan"), pd.Timestamp("2020-07-02"), True)]
    ['12.3', '48\\u202f212', '0.000123', '7', '–', '2020-07-02', 'yes']
    """
    if value is None or value is pd.NA or (isinstance(value, _TIMES) and pd.isna(value)):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, np.datetime64 | pd.Timestamp):
        time = pd.Timestamp(value)
        return time.strftime("%Y-%m-%d" if time == time.normalize() else "%Y-%m-%d %H:%M")
    if isinstance(value, int | np.integer):
        # A thin space cannot be mistaken for a decimal sign in any language.
        return f"{int(value):,}".replace(",", "\u202f")
    if isinstance(value, float | np.floating):
        number = float(value)
        if np.isnan(number):
            return MISSING
        if not np.isfinite(number):
            return "∞" if number > 0 else "-∞"
        rounded = float(f"{number:.{digits}g}") if abs(number) < 10**digits else float(round(number))
        if rounded == 0:
            return "0"
        if not 1e-6 <= abs(rounded) < 1e12:
            return f"{number:.{digits - 1}e}"
        decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(rounded)))))
        return f"{rounded:,.{decimals}f}".replace(",", "\u202f")
    return str(value)


def _header(frame: pd.DataFrame) -> list[str]:
    """Column names with the units of `frame.attrs["units"]`."""
    units: Mapping[str, str] = frame.attrs.get("units", {})
    return [f"{column} ({units[column]})" if column in units else str(column) for column in frame.columns]


def _rows(frame: pd.DataFrame) -> list[list[str]]:
    return [[format_value(v) for v in row] for row in frame.itertuples(index=False, name=None)]


def _numeric(frame: pd.DataFrame) -> list[bool]:
    return [bool(pd.api.types.is_numeric_dtype(d)) and not pd.api.types.is_bool_dtype(d) for d in frame.dtypes]


def _tables(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Named indexes become columns: they are content. A bare counting index is not."""
    return {
        name: frame if frame.index.names == [None] and isinstance(frame.index, pd.RangeIndex) else _with_index(frame)
        for name, frame in tables.items()
    }


def _with_index(frame: pd.DataFrame) -> pd.DataFrame:
    out = frame.reset_index(names="" if frame.index.names == [None] else None)
    out.attrs = dict(frame.attrs)
    return out


def to_markdown(tables: pd.DataFrame | Mapping[str, pd.DataFrame]) -> str:
    """Tables in GitHub-style Markdown, numbers to the right, with the same digits as in the report.

    Parameters
    ----------
    tables : DataFrame or mapping title -> DataFrame
        Units of columns: `frame.attrs["units"] = {"v": "m/yr"}`.

    Examples
    --------
    >>> frame = pd.DataFrame({"stake": ["A|1"], "v": [12.345]})
    >>> frame.attrs["units"] = {"v": "m/yr"}
    >>> print(to_markdown(frame))
    | stake | v (m/yr) |
    | :---- | -------: |
    | A\\|1 |     12.3 |
    """
    if isinstance(tables, pd.DataFrame):
        return _markdown_table(_tables({"": tables})[""])
    return "\n\n".join(f"### {name}\n\n{_markdown_table(frame)}" for name, frame in _tables(tables).items())


def _markdown_table(frame: pd.DataFrame) -> str:
    right = _numeric(frame)
    lines = [[_escape(cell) for cell in row] for row in (_header(frame), *_rows(frame))]
    widths = [max(3, *(len(row[i]) for row in lines)) for i in range(len(right))]
    rule = ["-" * (w - 1) + ":" if r else ":" + "-" * (w - 1) for w, r in zip(widths, right)]
    text = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)] for row in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in (text[0], rule, *text[1:]))


def _escape(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").splitlines())


def _embedded(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", pad_inches=0.05)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[str],
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, "Figure"],
    provenance: Mapping[str, Any],
) -> Path:
    """Write one self-contained HTML page; an existing file is replaced.

    Readable on a light or dark screen and on paper; no script, no link to another resource; all text is escaped.

    Parameters
    ----------
    path : path
        Target, `*.html`.
    title : str
    summary : sequence of str
        The findings, one sentence each, the most important first.
    tables : mapping title -> DataFrame
        Units of columns: `frame.attrs["units"] = {"v": "m/yr"}`.
    figures : mapping caption -> Figure
        Embedded as PNG.
    provenance : mapping
        Versions, parameters, query, item ids.

    Returns
    -------
    Path

    Raises
    ------
    ParameterError
        An empty summary, or another suffix.
    StoreError
        The folder does not exist.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ParameterError("path", rule="must end in .html", value=str(path))
    if not summary:
        raise ParameterError("summary", rule="needs at least one sentence", fix="say what was found")
    loader = jinja2.PackageLoader("ogive", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.get_template("report.html.j2").render(
        title=title,
        summary=list(summary),
        tables=[
            {"title": name, "header": list(zip(_header(f), _numeric(f))), "rows": _rows(f), "right": _numeric(f)}
            for name, f in _tables(tables).items()
        ],
        figures=[(caption, _embedded(figure)) for caption, figure in figures.items()],
        provenance=list(_flat(provenance)),
    )
    with replacing(path, overwrite=True) as part:
        part.write_text(page, encoding="utf-8")
    return Path(path)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted keys; long lists by their length and first entries."""
    out: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and len(value) > 6:
            first = ", ".join(str(v) for v in value[:3])
            out.append((f"{prefix}{key}", f"{len(value)} entries: {first}, …"))
        elif isinstance(value, list | tuple):
            out.append((f"{prefix}{key}", ", ".join(str(v) for v in value)))
        else:
            out.append((f"{prefix}{key}", str(value)))
    return out
