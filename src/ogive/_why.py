"""Why a velocity is missing or uncertain, in words, for one place; `ogive.diagnose.why`."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from . import flags, grid
from .errors import ParameterError
from .invert import screening

SURGE = 1.0
"""kappa from which the velocity changes by its own size within a month: a surge, or a few outliers taken for one."""
DOUBTFUL = 1.5
"""Residuals this many times the given errors say that those are too small; an error so many times the usual one of
the pixel, that this window is worse than others."""
MANY = 0.3
"""Share of rejected pairs worth a word: twice the outliers of an ordinary cube."""
THIN = 3.0
"""Effective pairs below which hardly one confirms the other."""
_DAY = np.timedelta64(86400 * 10**9, "ns")
_NAMED = 3


def why(data: xr.Dataset, x: float, y: float, *, time: Any = None, velocity: xr.Dataset | None = None) -> str:
    """Say in words why the value at a place is missing or uncertain.

    Parameters
    ----------
    data : xr.Dataset
        A series (time, y, x) from `ogive.invert`, or a velocity (mid_date, y, x).
    x, y : float
        Map coordinates in the coordinate system of the data [m].
    time : date, optional
        The window, or the pairs, that contain this date; default all.
    velocity : xr.Dataset, optional
        The pairs behind a series: names those around.

    Returns
    -------
    str
        One to three sentences.

    Raises
    ------
    ParameterError
        The place is off the grid, or the date is none.

    Examples
    --------
    >>> from ogive.invert import invert
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity, _ = velocity_cube("100")
    >>> x, y = float(velocity.x[3]), float(velocity.y[2])
    >>> why(velocity, x, y)
    '96 of 100 pairs are valid; 4 no data or masked.'
    >>> why(invert(velocity, end="2019-06-01"), x, y, time="2019-04-01")[:47]
    'No velocity from 2019-03-14 to 2019-04-13: it l'
    """
    when = _date(time)
    cell = _cell(data, x, y)
    if "mid_date" in data.dims:
        return _about_pairs(cell, when)
    lacking = [name for name in ("time_bnds", "flag", "count", "n_pairs", "n_screened") if name not in cell.variables]
    if lacking:
        fix = "use a result of ogive.invert, or a velocity"
        raise ParameterError("data", rule=f"lacks {', '.join(lacking)}", fix=fix)
    text = _about_series(cell) if when is None else _about_window(cell, when)
    if velocity is None:
        return text
    pairs, (start, end) = _cell(velocity, x, y), _span(cell, when)
    if when is not None and not start <= when < end:
        return f"{text} {_about_pairs(pairs, when)}"
    return f"{text} {_around(pairs, start, end)}"


def _date(time: Any) -> np.datetime64 | None:
    if time is None:
        return None
    try:
        return np.datetime64(pd.Timestamp(time).as_unit("ns").to_datetime64())
    except (ValueError, TypeError) as error:
        raise ParameterError("time", rule="must be a date", value=repr(time), fix="use '2020-07-15'") from error


def _cell(data: xr.Dataset, x: float, y: float) -> xr.Dataset:
    """The one cell of a place, in memory."""
    geobox = grid.geobox_of(data)
    column, line = (int(np.floor(v)) for v in ~geobox.affine * (float(x), float(y)))
    if not (0 <= line < data.sizes["y"] and 0 <= column < data.sizes["x"]):
        box = geobox.boundingbox
        rule = f"must lie on the grid: x {box.left:.0f} to {box.right:.0f}, y {box.bottom:.0f} to {box.top:.0f}"
        raise ParameterError("x, y", rule=rule, value=(x, y), fix=f"use coordinates of {geobox.crs}")
    wanted = ("vx", "vy", "v", "v_error", "flag", "count", "screened", "n_pairs", "n_screened", "n_rejected", "dt_max",
              "kappa", "residual", "stack_count", "date_dt", "time_bnds", "acquisition_date_img1",
              "acquisition_date_img2")  # fmt: skip
    there = [name for name in wanted if name in data.variables]
    return data[there].isel(y=line, x=column).compute()


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {text}" for text, n in counts.items())


def _about_pairs(cell: xr.Dataset, when: np.datetime64 | None) -> str:
    """How many pairs are valid, and why the others are not."""
    t1, t2 = (cell[f"acquisition_date_img{k}"].values for k in (1, 2))
    chosen = np.ones(t1.size, bool) if when is None else (t1 <= when) & (t2 >= when)
    where = "" if when is None else f" around {_day(when)}"
    if not chosen.any():
        return f"No pair spans {_day(when)}: images reach from {_day(t1.min())} to {_day(t2.max())}."
    valid = chosen & np.isfinite(cell["vx"].values) & np.isfinite(cell["vy"].values)
    lost = chosen & ~valid
    text = f"{valid.sum()} of {chosen.sum()} pairs{where} are valid"
    reasons = flags.tally(cell["flag"].values[lost] & ~np.uint16(flags.WARNINGS)) if "flag" in cell else {}
    if lost.any():
        text += f"; {_listed(reasons) if reasons else f'{lost.sum()} without a reason on record'}"
    if "screened" in cell:
        bits = cell["screened"].values[valid]
        counts = {t.replace("_", " "): int(np.count_nonzero(bits & b)) for b, t in screening.MEANINGS.items()}
        left = {t: n for t, n in counts.items() if n}
        text += f"; screening leaves out {np.count_nonzero(bits)}" + (f" ({_listed(left)})" if left else "")
    return text + "."


def _about_series(cell: xr.Dataset) -> str:
    """The whole series of a cell."""
    valid, bits = np.isfinite(cell["vx"].values), cell["flag"].values
    text = f"{valid.sum()} of {valid.size} windows have a velocity"
    if not valid.all():
        text += f"; {_listed(flags.tally(bits[~valid]))}"
    return f"{text}. {_pairs_used(cell)}"


def _pairs_used(cell: xr.Dataset) -> str:
    """What became of the pairs, and what the fit says of them."""
    n, left, rejected = (int(cell[name]) for name in ("n_pairs", "n_screened", "n_rejected"))
    text = f"Of {n} valid pairs {left} were screened out and {rejected} rejected as outliers"
    if n > left and rejected > MANY * (n - left):
        text += f" ({100 * rejected / (n - left):.0f} % of those let in)"
    if np.isfinite(cell["dt_max"]):
        text += f"; pairs above {float(cell['dt_max']):.0f} d have lost the surface and are left out"
    doubts = _doubts(cell)
    return text + (f"; {', '.join(doubts)}." if doubts else ".")


def _doubts(cell: xr.Dataset) -> list[str]:
    """What the fit itself says against a value."""
    doubts = []
    if "residual" in cell and float(cell["residual"]) > DOUBTFUL:
        doubts.append(f"residuals are {float(cell['residual']):.1f} times the given errors")
    if "kappa" in cell and float(cell["kappa"]) >= SURGE:
        doubts.append(f"the velocity changes fast (kappa {float(cell['kappa']):.1g}: a surge, or outliers)")
    return doubts


def _about_window(cell: xr.Dataset, when: np.datetime64) -> str:
    """One window: what is there and how good it is, or why nothing is there."""
    bounds = cell["time_bnds"].values
    start, end = _span(cell, when)
    if end <= when or start > when:
        return f"No window contains {_day(when)}: the series has windows from {_day(bounds[:, 0].min())} to " \
               f"{_day(bounds[:, 1].max())}."  # fmt: skip
    now = cell.isel(time=_window(bounds, when))
    window = f"from {_day(start)} to {_day(end)}"
    if not np.isfinite(now["vx"]):
        return f"No velocity {window}: {_missing(now, cell)}."
    error, usual = float(now["v_error"]), float(np.nanmedian(cell["v_error"].values))
    text = f"{float(now['v']):.0f} ± {error:.0f} m/yr {window}, from {float(now['count']):.1f} effective pairs"
    doubts = [f"the error is {error / usual:.1f} times that of other windows"] if error > DOUBTFUL * usual else []
    if float(now["count"]) < THIN:
        doubts.append("hardly one pair confirms another")
    return text + (f": {', '.join(doubts)}. " if doubts else ". ") + _pairs_used(cell)


def _missing(now: xr.Dataset, cell: xr.Dataset) -> str:
    """Reason of one missing window."""
    bits, n, left = int(now["flag"]), int(cell["n_pairs"]), int(cell["n_screened"])
    if bits & flags.NOT_COMPUTED:
        return "the block was never computed, finish the write"
    if bits & flags.TOO_FEW_PAIRS:
        return f"only {n} valid pairs at this pixel" if n else "no valid pair at this pixel"
    if bits & flags.SCREENED:
        return f"{left} of {n} valid pairs were screened out, {n - left} are too few"
    count = float(now["count"])
    if bits & flags.GAP and np.isfinite(count) and count > 0:
        return f"pairs cover it with a weight of {count:.1f} only, or not wholly"
    if bits & flags.GAP:
        valid = cell["time_bnds"].values[np.isfinite(cell["vx"].values)]
        if not valid.size:
            return "no accepted pair covers it"
        first, last = valid[:, 0].min(), valid[:, 1].max()
        inside = first <= now["time_bnds"].values[0] < last
        return "no accepted pair covers it" if inside else f"it lies outside the data, {_day(first)} to {_day(last)}"
    return ", ".join(flags.explain(bits)).replace("_", " ") or "no reason on record"


def _window(bounds: NDArray[np.datetime64], when: np.datetime64) -> int:
    """The window around a date: of those that contain it the one with the nearest centre, else the nearest."""
    centre = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) // 2
    away = np.abs((centre - when) / _DAY)
    outside = ~((bounds[:, 0] <= when) & (bounds[:, 1] > when))
    return int(np.lexsort((away, outside))[0])


def _span(cell: xr.Dataset, when: np.datetime64 | None) -> tuple[np.datetime64, np.datetime64]:
    """Start and end of the window around a date, or of the series."""
    bounds = cell["time_bnds"].values
    if when is None:
        return bounds[:, 0].min(), bounds[:, 1].max()
    start, end = bounds[_window(bounds, when)]
    return start, end


def _around(cell: xr.Dataset, start: np.datetime64, end: np.datetime64) -> str:
    """The pairs that overlap a span of time: how many are valid, and the shortest by name."""
    t1, t2 = (cell[f"acquisition_date_img{k}"].values for k in (1, 2))
    overlap = np.flatnonzero((t1 < end) & (t2 > start))
    if not overlap.size:
        return "No pair overlaps it."
    part = cell.isel(mid_date=overlap)
    good = np.flatnonzero(np.isfinite(part["vx"].values) & np.isfinite(part["vy"].values))
    text = "Overlapping it, " + _about_pairs(part, None).rstrip(".")
    if good.size:
        length = (t2 - t1)[overlap][good]
        chosen = overlap[good[np.argsort(length, kind="stable")[:_NAMED]]]
        named = ", ".join(f"{_day(t1[k])} to {_day(t2[k])}" for k in chosen)
        text += f"; the shortest valid: {named}"
    return text + "."


def _day(time: Any) -> str:
    return str(np.datetime64(time, "D"))
