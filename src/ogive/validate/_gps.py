"""Velocities from positions measured on the ice."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyproj
from numpy.typing import NDArray

from .. import grid
from ..errors import ParameterError
from ._tables import dates, find, need, numbers, read_table

_DAY = np.timedelta64(86400, "s")


def gps(
    positions: str | Path | pd.DataFrame,
    *,
    crs: Any = None,
    station: str | None = None,
    interval: str | None = None,
    sigma: float | None = None,
) -> pd.DataFrame:
    """Velocities of stations or stakes from their positions, as `validate.stakes` reads them.

    Parameters
    ----------
    positions : path or pd.DataFrame
        Columns lon and lat [degree, WGS 84] and time, or year, month and, if there, day (without: the 15th), in any
        order and under the usual spellings; rows without a position are left out. If there: the name of the station,
        and `sigma`, the standard error of a position in each horizontal direction [m].
    crs : optional
        Projected coordinate system of the velocities to compare with: adds x, y [m] of the middle and vx, vy along
        its axes. Projected lengths, as satellite displacements are.
    station : str, optional
        The one wanted of a table of several, or the name to give where the table has none; default the file's.
    interval : str, optional
        Shortest time between the two positions of a row, e.g. `"90D"`: each row starts where the last one ended.
        `"0D"` goes from each position to the next. Default: one row for each station, first to last position.
    sigma : float, optional
        Standard error of every position [m], in place of a column.

    Returns
    -------
    pd.DataFrame
        `name`, `t1`, `t2`, `lon`, `lat` (middle), `distance` [m, on the ellipsoid], `azimuth` [degree from north], `v`
        [meter/year of 365 d; a rate per year of 365.25 d is 0.07 % larger]; with crs `x`, `y`, `vx`, `vy`; where
        sigma is known `v_error`, with crs `vx_error`, `vy_error`: positions independent of each other.

    Raises
    ------
    ParameterError
        A column is missing or unreadable, the station is not there or has fewer than two positions, two positions
        of a station have the same time.

    Examples
    --------
    >>> a = pd.DataFrame({"Longitude": [0.0, 0.001], "Latitude": [0.0, 0.0], "Date": ["2020-01-01", "2020-12-31"]})
    >>> table = gps(a, station="A", sigma=0.5)
    >>> round(float(table["v"][0]), 2), round(float(table["azimuth"][0]), 1), round(float(table["v_error"][0]), 3)
    (111.32, 90.0, 0.707)
    """
    try:
        shortest = None if interval is None else pd.Timedelta(interval)
    except ValueError as error:
        raise ParameterError("interval", rule="must be a length of time", value=interval, fix="use '90D'") from error
    table = read_table(positions)
    lon, lat = (numbers(table, c) for c in need(table, "lon, lat", find(table, "lon", "lat")))
    given = pd.DataFrame({"lon": lon, "lat": lat, "time": _times(table)})
    column = find(table, "sigma") if sigma is None else []
    given["sigma"] = numbers(table, *column) if column else np.nan if sigma is None else float(sigma)
    default = station or ("" if isinstance(positions, pd.DataFrame) else Path(positions).stem)
    named = find(table, "name")
    given["name"] = table[named[0]].astype(str).to_numpy() if named else default
    if named and station is not None:
        if station not in set(given["name"]):
            there = ", ".join(sorted(set(given["name"])))
            raise ParameterError("station", rule=f"must be one of {there}", value=station)
        given = given[given["name"] == station]
    given = given.dropna(subset=["lon", "lat", "time"])
    rows = [_velocities(one.sort_values("time"), shortest, crs) for _, one in given.groupby("name", sort=False)]
    if not rows:
        raise ParameterError("positions", rule="needs at least two", value=0)
    return pd.concat(rows, ignore_index=True)


def _times(table: pd.DataFrame) -> NDArray[np.datetime64]:
    column = find(table, "time")
    if not column and {"year", "month"} <= set(table.columns):
        parts = table.reindex(columns=["year", "month", "day"]).fillna({"day": 15})
        return np.asarray(pd.to_datetime(parts), "M8[ns]")
    return dates(table, *need(table, "time, or year and month", column))


def _velocities(one: pd.DataFrame, shortest: pd.Timedelta | None, crs: Any) -> pd.DataFrame:
    """From position to position of one station, sorted by time."""
    when = one["time"].to_numpy("M8[ns]")
    name = str(one["name"].iloc[0])
    if when.size < 2:
        raise ParameterError("positions", rule=f"needs at least two of station {name!r}", value=when.size)
    if not (np.diff(when) > np.timedelta64(0)).all():
        rule = f"two positions of station {name!r} have the same time"
        raise ParameterError("positions", rule=rule, fix="name the stations in a column, or average the positions")
    ends = _ends(when, shortest)
    if ends.size < 2:
        raise ParameterError("interval", rule=f"longer than the positions of {name!r} reach", value=str(shortest))
    when, lon, lat, sigma = when[ends], *(one[c].to_numpy(np.float64)[ends] for c in ("lon", "lat", "sigma"))
    years = np.diff(when) / _DAY / grid.YEAR_DAYS
    azimuth, _, distance = pyproj.Geod(ellps="WGS84").inv(lon[:-1], lat[:-1], lon[1:], lat[1:])
    columns = {
        "name": name, "t1": when[:-1], "t2": when[1:], "lon": (lon[:-1] + lon[1:]) / 2, "lat": (lat[:-1] + lat[1:]) / 2,
        "distance": distance, "azimuth": np.asarray(azimuth) % 360, "v": distance / years,
    }  # fmt: skip
    if crs is not None:
        x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
        columns |= {"x": (x[:-1] + x[1:]) / 2, "y": (y[:-1] + y[1:]) / 2}
        columns |= {"vx": np.diff(x) / years, "vy": np.diff(y) / years}
    if np.isfinite(sigma).any():
        error = np.hypot(sigma[:-1], sigma[1:]) / years
        columns |= dict.fromkeys(("v_error", *(("vx_error", "vy_error") if crs is not None else ())), error)
    return pd.DataFrame(columns)


def _ends(when: NDArray[np.datetime64], shortest: pd.Timedelta | None) -> NDArray[np.int64]:
    """Positions at which rows begin and end: the first and the last, or steps no shorter than wanted.

    Examples
    --------
    >>> when = np.array(["2020-01-01", "2020-01-05", "2020-01-12", "2020-01-14"], "M8[ns]")
    >>> _ends(when, pd.Timedelta("8D")).tolist(), _ends(when, None).tolist()
    ([0, 2], [0, 3])
    """
    if shortest is None:
        return np.array([0, when.size - 1])
    ends = [0]
    for k in range(1, when.size):
        if when[k] - when[ends[-1]] >= shortest.to_timedelta64():
            ends.append(k)
    return np.array(ends)
