"""Field tables: columns found under their usual spellings, numbers and dates that cannot be misread."""

import re
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import ParameterError

SPELLINGS: dict[str, tuple[str, ...]] = {
    "name": ("name", "stake", "stake_id", "stake_name", "station", "station_id", "site", "site_name", "label", "id"),
    "x": ("x", "easting", "x_utm", "utm_x"),
    "y": ("y", "northing", "y_utm", "utm_y"),
    "lon": ("lon", "longitude", "long", "lon_deg", "gps_lon"),
    "lat": ("lat", "latitude", "lat_deg", "gps_lat"),
    "x1": ("x1", "x_1", "easting1", "easting_1"),
    "y1": ("y1", "y_1", "northing1", "northing_1"),
    "lon1": ("lon1", "lon_1", "longitude1", "longitude_1"),
    "lat1": ("lat1", "lat_1", "latitude1", "latitude_1"),
    "time": ("time", "date", "datetime", "timestamp", "date_time"),
    "vx": ("vx", "v_x"),
    "vy": ("vy", "v_y"),
    "v": ("v", "speed", "velocity", "v_h"),
    "vx_error": ("vx_error", "vx_sigma", "vx_err", "sigma_vx"),
    "vy_error": ("vy_error", "vy_sigma", "vy_err", "sigma_vy"),
    "v_error": ("v_error", "v_sigma", "v_err", "sigma_v", "error", "sigma", "uncertainty"),
    "sigma": ("sigma", "position_sigma", "sigma_position", "position_error"),
}
"""Column names in lower case, without units, the preferred one first."""
INTERVALS = (
    ("t1", "t2"), ("date1", "date2"), ("date_1", "date_2"), ("date0", "date1"), ("start", "end"),
    ("start_date", "end_date"), ("date_start", "date_end"),
)  # fmt: skip


def read_table(table: str | Path | pd.DataFrame) -> pd.DataFrame:
    """A copy with plain column names; text files may be separated by commas, semicolons or tabs.

    Examples
    --------
    >>> list(read_table(pd.DataFrame({"Lon [degree]": [1.0], "Date 1": ["2020-01-01"], "lat, °N": [2.0]})))
    ['lon', 'date_1', 'lat']
    """
    if not isinstance(table, pd.DataFrame):
        try:
            # The separator of the header is that of the file; guessing from rows fails on decimal numbers.
            header = Path(table).read_text(encoding="utf-8-sig").lstrip().partition("\n")[0]
            separator = max(";\t,", key=header.count)
            table = pd.read_csv(table, sep=separator, encoding="utf-8-sig", skipinitialspace=True)
        except (OSError, ValueError) as error:
            raise ParameterError("table", rule=f"cannot be read: {error}", value=str(table)) from error
    plain = [re.sub(r"[^\w]+", "_", re.sub(r"[\[(,].*", "", str(c)).strip().lower()) for c in table.columns]
    return table.set_axis(plain, axis=1)


def find(table: pd.DataFrame, *names: str) -> list[str]:
    """Columns of the table that hold these quantities; none unless all are there."""
    found = [next((c for c in SPELLINGS[name] if c in table.columns), None) for name in names]
    return [c for c in found if c is not None] if None not in found else []


def need(table: pd.DataFrame, wanted: str, *choices: list[str]) -> list[str]:
    """The first choice of columns that is there."""
    for columns in choices:
        if columns:
            return columns
    raise ParameterError("table", rule=f"needs columns {wanted}", value=", ".join(map(str, table.columns)))


def numbers(table: pd.DataFrame, column: Hashable) -> NDArray[np.float64]:
    """A column as float64, NaN where empty.

    Raises
    ------
    ParameterError
        An entry is not a number.
    """
    values = pd.to_numeric(table[column], errors="coerce")
    _refuse(table[column], values.isna(), "must hold numbers with a decimal point")
    return values.to_numpy(np.float64)


def dates(table: pd.DataFrame, column: Hashable) -> NDArray[np.datetime64]:
    """A column as datetime64[ns] in UTC, NaT where empty.

    Raises
    ------
    ParameterError
        An entry is not an ISO 8601 date: 01/02/2020 is January or February, depending on the country.
    """
    given = table[column]
    texts = given if pd.api.types.is_datetime64_any_dtype(given) else given.astype("string")
    found = pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True)
    _refuse(given, found.isna(), "must hold dates as year-month-day (ISO 8601)")
    return np.asarray(found.dt.tz_localize(None), "M8[ns]")


def _refuse(given: pd.Series, unread: pd.Series, rule: str) -> None:
    wrong = given[unread & given.notna()]
    if len(wrong):
        raise ParameterError(f"column {given.name!r}", rule=rule, value=repr(wrong.iloc[0]))
