"""Rows, targets, tables, JSON, the comparison with an earlier run, and the command line of a benchmark."""

import argparse
import json
import math
import platform
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from llvmlite import binding

RATIO = "x OpenCV"
RATIOS = {"Speed": {RATIO: "OpenCV"}, "Beside TICOI": {"adaptive x": "TICOI", "ticoi x": "TICOI"}}
"""The figures that an earlier run is compared by, by table: speeds as multiples of a peer's, from one process. Tables
whose repeats are spread over time; others tell less sure."""
DROP = 0.2
"""A ratio that is lower by this share fails."""
FORMATS = {
    "points": ",.0f", "points/s": ",.0f", RATIO: ".1f", "ms": ",.1f", "ms/pair": ",.1f", "filters/scene": ".2f",
    "compiled": ".0f", "MB": ",.0f", "estimate MB": ",.0f", "growth": "+.1%", "px": ".0f", "above": ".0f",
    "error": ".4f", "RMSE": ".4f", "NMAD": ".4f", "bias": ".4f", "bias y": "+.4f", "bias x": "+.4f", "z": ".2f",
    "bias along": "+.1%", "rank": ".2f", "p99": ".4f", "s/tile": ".2f", "s, large": ".2f", "s/Mpx": ".2f",
}  # fmt: skip
"""How figures are printed; all others are shares."""
LIBRARIES = ("ogive", "numpy", "scipy", "numba", "opencv-python-headless", "scikit-image", "openpiv", "ticoi")


@dataclass(frozen=True)
class Limit:
    """What a figure should be."""

    figure: str
    low: float | None = None
    high: float | None = None

    def met(self, figures: Mapping[str, float]) -> bool:
        """Whether the figure is there and within the limits."""
        value = figures.get(self.figure, math.nan)
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        low, high = (None if v is None else f"{v:,.10g}" for v in (self.low, self.high))
        if low is not None and high is not None:
            return f"{self.figure} {low} ... {high}"
        return f"{self.figure} >= {low}" if high is None else f"{self.figure} <= {high}"


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured, and what it should be."""

    name: str
    figures: Mapping[str, float]
    limits: Sequence[Limit] = ()

    @property
    def verdict(self) -> str:
        """Whether the limits are met."""
        failed = [limit.figure for limit in self.limits if not limit.met(self.figures)]
        return "" if not self.limits else "not met: " + ", ".join(failed) if failed else "met"


@dataclass(frozen=True)
class Table:
    """Rows of one concern, with what is to be said about them."""

    title: str
    about: str
    rows: Sequence[Row]


def printed(table: Table) -> str:
    """A table as text: columns as wide as they must be, a figure's name over its column."""
    names = list(dict.fromkeys(name for row in table.rows for name in row.figures))
    head = ["", *names, "target" if any(row.limits for row in table.rows) else "", ""]
    body = [
        [row.name, *(_figure(name, row.figures) for name in names), "; ".join(map(str, row.limits)), row.verdict]
        for row in table.rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    last = len(head) - 2

    def line(cells: Sequence[str]) -> str:
        aligned = (
            c.rjust(w) if 0 < k < last else c.ljust(w) for k, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    rule = "-" * len(line(["-" * w for w in widths]))
    return "\n".join([table.title, *textwrap.wrap(table.about, 120), rule, line(head), rule, *map(line, body), ""])


def markdown(table: Table) -> str:
    """A table for a page."""
    names = list(dict.fromkeys(name for row in table.rows for name in row.figures))
    judged = any(row.limits for row in table.rows)
    body = [["", *names, *(["target"] if judged else [])], ["---"] + ["---:"] * len(names) + ["---"] * judged]
    for row in table.rows:
        target = f"{'; '.join(map(str, row.limits))}: {row.verdict}" if row.limits else ""
        body.append([row.name, *(_figure(name, row.figures) for name in names), *([target] if judged else [])])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body)


def _figure(name: str, figures: Mapping[str, float]) -> str:
    if name not in figures:
        return ""
    return format(figures[name], FORMATS.get(name, ".1%"))


def totals(tables: Iterable[Table]) -> str:
    """How many targets are met, and which are not."""
    rows = [(table, row) for table in tables for row in table.rows if row.limits]
    missed = [f"  {table.title}: {row.name}: {row.verdict}" for table, row in rows if row.verdict != "met"]
    return "\n".join([f"{len(rows) - len(missed)} of {len(rows)} rows with a target meet it", *missed])


def machine() -> dict[str, str]:
    """What this machine is, without its name."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = "not installed"
    processor = model[1] if model else platform.processor() or platform.machine()
    return {"processor": processor, "code for": binding.get_host_cpu_name(), "system": platform.system()} | versions


def as_json(tables: Sequence[Table], quick: bool, notes: Sequence[str]) -> dict[str, Any]:
    """All figures of a run."""
    return {"machine": machine(), "quick": quick, "notes": list(notes), "tables": [asdict(t) for t in tables]}


def from_json(run: Mapping[str, Any]) -> list[Table]:
    """The tables of an earlier run."""
    return [
        Table(
            t["title"], t["about"], [Row(r["name"], r["figures"], [Limit(**m) for m in r["limits"]]) for r in t["rows"]]
        )
        for t in run["tables"]
    ]


def fallen(run: Mapping[str, Any], baseline: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the ratios of a run beside those of an earlier one."""
    if run["quick"] != baseline["quick"]:
        yield "a quick run and a full one have other image sizes, so their ratios cannot be compared"
        return
    now = _ratios(run)
    for key, before in _ratios(baseline).items():
        name, peer = key
        if key not in now:
            yield f"{name}: not measured"
        elif now[key] < (1 - DROP) * before:
            yield f"{name}: {now[key]:.1f} times {peer}, {before:.1f} in the baseline"


def _ratios(run: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Ratio by row (and figure, where a row has several) and peer."""
    return {
        (row.name if len(peers) == 1 else f"{row.name}, {figure[:-2]}", peer): row.figures[figure]
        for table in from_json(run)
        if (peers := RATIOS.get(table.title))
        for row in table.rows
        for figure, peer in peers.items()
        if figure in row.figures
    }


def program(
    about: str, tables: Callable[[bool], Iterator[Table]], notes: Callable[[bool], Iterator[str]],
    arguments: Sequence[str] | None,
) -> int:  # fmt: skip
    """Measure, or read an earlier run; print, keep, compare. Returns the exit status."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little data, few cases, under 40 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--check", type=Path, metavar="FILE", help="fail if a ratio is 20 %% below that of this file")
    parser.add_argument("--read", type=Path, metavar="FILE", help="print this file instead of measuring")
    parser.add_argument("--markdown", action="store_true", help="with --read: tables for a page")
    given = parser.parse_args(arguments)
    if given.read:
        run = json.loads(given.read.read_text())
        for table in from_json(run):
            print(f"{markdown(table)}\n" if given.markdown else printed(table))
    else:
        done = []
        for table in tables(given.quick):
            print(printed(table), flush=True)
            done.append(table)
        run = as_json(done, given.quick, list(notes(given.quick)))
    print(totals(from_json(run)))
    print("", *run["notes"], ", ".join(f"{k} {v}" for k, v in run["machine"].items()), sep="\n")
    if given.json:
        given.json.write_text(json.dumps(run, indent=1) + "\n")
    if not given.check:
        return 0
    baseline = json.loads(given.check.read_text())
    failed = list(fallen(run, baseline))
    if run["machine"]["processor"] != baseline["machine"]["processor"]:
        print(f"The baseline is from another processor, {baseline['machine']['processor']}.")
    print("\n".join(["Slower than the baseline:", *failed]) if failed else "No ratio is 20 % below the baseline.")
    return int(bool(failed))
