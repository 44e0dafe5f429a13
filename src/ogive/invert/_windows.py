"""Windows of a series: from an offset, from edges, or one by one. Dates without a time zone are UTC."""

import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import ParameterError

_FIX = "use a pandas offset such as '30D' or 'MS', a list of dates, or an array (W, 2) of starts and ends"


def windows(
    t1: NDArray[np.datetime64],
    t2: NDArray[np.datetime64],
    *,
    every: str | Sequence[Any] | NDArray[Any],
    length: str | None = None,
    start: Any = None,
    end: Any = None,
) -> NDArray[np.datetime64]:
    """Windows over the span of the pairs: (W, 2) datetime64[ns].

    Parameters
    ----------
    t1, t2 : (N,) datetime64
        Acquisition times of the pairs.
    every : str, sequence of dates, or (W, 2) array of dates
        Step from window to window as a pandas offset; the edges of contiguous windows; or start and end of each.
    length : str, optional
        Length of the windows, where `every` is an offset; default the step, so that they are contiguous.
    start, end : date, optional
        First and last edge; default the whole days around the first and the last image.

    Raises
    ------
    ParameterError
        `every` or `length` is not an offset, dates do not increase, or no window fits.

    Examples
    --------
    >>> t1, t2 = np.array(["2020-01-01T10:20"], "M8[ns]"), np.array(["2020-03-05T10:20"], "M8[ns]")
    >>> windows(t1, t2, every="MS").astype("M8[D]").tolist()
    [[datetime.date(2020, 1, 1), datetime.date(2020, 2, 1)], [datetime.date(2020, 2, 1), datetime.date(2020, 3, 1)]]
    >>> windows(t1, t2, every="5D", length="30D").shape
    (8, 2)
    """
    first = _edge("start", start, pd.Timestamp(t1.min()).floor("D"))
    last = _edge("end", end, pd.Timestamp(t2.max()).ceil("D"))
    value = textwrap.shorten(repr(every) if length is None else f"{every!r}, {length!r}", 100)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # an outdated offset is not understood either
            bounds = _bounds(first, last, every, length)
    except (ValueError, TypeError, OverflowError, FutureWarning) as error:
        raise ParameterError("every", rule=f"not understood: {error}", value=value, fix=_FIX) from error
    if not (bounds[:, 1] > bounds[:, 0]).all():
        raise ParameterError("every", rule="edges must increase", value=value, fix="sort the dates")
    if not len(bounds):
        rule, fix = f"no window fits into {first:%Y-%m-%d} to {last:%Y-%m-%d}", "use shorter windows, or another span"
        raise ParameterError("every", rule=rule, value=value, fix=fix)
    return bounds


def utc(dates: Any) -> NDArray[np.datetime64]:
    """Dates of any kind, with or without a time zone, as (N,) datetime64[ns] in UTC.

    Raises
    ------
    ValueError
        Something is not a date.

    Examples
    --------
    >>> utc(["2020-01-01", pd.Timestamp("2020-01-01", tz="Asia/Tokyo")]).astype("M8[h]").tolist()
    [datetime.datetime(2020, 1, 1, 0, 0), datetime.datetime(2019, 12, 31, 15, 0)]
    """
    values = np.ravel(dates if isinstance(dates, np.ndarray) else np.asarray(dates, object))
    kind = values.dtype.kind
    if kind not in "MOSTU" or (kind == "O" and any(isinstance(v, int | float) for v in values)):
        raise ValueError("numbers are no dates")
    found = pd.DatetimeIndex(pd.to_datetime(values, utc=True, format="mixed")).as_unit("ns")
    if found.hasnans:
        raise ValueError("a date is missing")
    return np.asarray(found.tz_localize(None).values, "M8[ns]")


def season(first_year: int, last_year: int, start: str = "04-01", end: str = "05-01") -> NDArray[np.datetime64]:
    """The same part of every year as windows: (W, 2) datetime64[ns].

    Parameters
    ----------
    first_year, last_year : int
        Years in which the seasons start, both included.
    start, end : str
        First day, and day after the last one, as MM-DD; an `end` not after `start` lies in the next year.

    Raises
    ------
    ParameterError
        Not a date in each of the years, or the years are in the wrong order.

    Examples
    --------
    >>> season(2015, 2016).astype("M8[D]").tolist()[1]
    [datetime.date(2016, 4, 1), datetime.date(2016, 5, 1)]
    >>> season(2015, 2015, "12-01", "03-01").astype("M8[D]").tolist()
    [[datetime.date(2015, 12, 1), datetime.date(2016, 3, 1)]]
    """
    if last_year < first_year:
        raise ParameterError("last_year", rule=f"must not be before {first_year}", value=last_year)
    try:
        days = [
            [pd.Timestamp(f"{year}-{start}"), pd.Timestamp(f"{year + (end <= start)}-{end}")]
            for year in range(first_year, last_year + 1)
        ]
    except ValueError as error:
        fix = "write months and days as MM-DD, and no 29 February"
        raise ParameterError("start, end", rule=f"not a date: {error}", value=(start, end), fix=fix) from error
    return np.array([[day.to_datetime64() for day in pair] for pair in days], "M8[ns]")


def _edge(name: str, date: Any, default: pd.Timestamp) -> pd.Timestamp:
    if date is None:
        return default
    try:
        return pd.Timestamp(utc([date])[0])
    except (ValueError, TypeError, OverflowError) as error:
        fix = "write it as '2020-06-01'"
        raise ParameterError(name, rule=f"not a date: {error}", value=repr(date), fix=fix) from error


def _bounds(first: pd.Timestamp, last: pd.Timestamp, every: Any, length: str | None) -> NDArray[np.datetime64]:
    if not isinstance(every, str):
        if length is not None:
            raise ValueError("a length goes with an offset only")
        dates, shape = utc(every), np.shape(every)
        if len(shape) == 2 and shape[1] == 2:
            return dates.reshape(shape)
        if len(shape) != 1 or shape[0] < 2:
            raise ValueError("a window needs two dates")
        return np.stack([dates[:-1], dates[1:]], 1)
    if first + pd.tseries.frequencies.to_offset(every) == first:
        raise ValueError("a step of nothing")
    edges = pd.date_range(first, last, freq=every)
    ends = edges[1:] if length is None else pd.DatetimeIndex(edges + pd.tseries.frequencies.to_offset(length))
    bounds = np.stack([edges.values[: len(ends)], ends.values], 1).astype("M8[ns]")
    return bounds[ends <= last]
