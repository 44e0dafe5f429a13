"""Which scenes to match with which: rules on dates, orbits, sun and cloud.

`make_pairs` works on a cube, on items or on a scene table, reads no pixel, and is deterministic: pairs are ordered by
the dates of their images.
"""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pystac
import xarray as xr

from . import grid as grids
from .errors import PairError, ParameterError
from .search import scene_table

log = logging.getLogger("ogive")

Days = tuple[float, float]
Months = tuple[int, int]

SUMMER: dict[str, Months] = {"north": (6, 10), "south": (12, 4)}
"""Months in which snow hides least of a glacier."""


@dataclass(frozen=True)
class PairRules:
    """Rules for pairs; every field has a meaning of its own and they all apply together.

    Parameters
    ----------
    days : (float, float) or tuple of such ranges
        Shortest and longest time between the images [days], inclusive.
    same_orbit : bool
        Same relative orbit (Sentinel-2) or path-row (Landsat): another one sees the terrain from another side, and
        errors of the elevation model become motion.
    same_sensor : bool
        Same sensor family.
    max_sun_difference : float, optional
        Largest angle between the two directions to the sun [degrees]; shadows move with it.
    max_cloud : float, optional
        Most cloud of a scene [percent]. Scenes that do not state it are kept.
    max_cloud_land : float, optional
        The same over land only, where the provider states it (Landsat).
    exclude_platforms : tuple of str
        Platforms to leave out, `"landsat-7"` for its stripes.
    season : (int, int) or "summer", optional
        First and last month of both images, inclusive; (11, 2) runs over the new year. "summer": June to October in the
        north, December to April in the south.
    years_apart : int, optional
        Years between the images: 1 pairs every scene of one year with every scene of the next. A season that runs over
        the new year counts as the year in which it ends.
    max_per_scene : int, optional
        Each scene takes part in at most so many pairs; short pairs are kept first.
    reference : str, optional
        Only pairs with this scene (an id).
    """

    days: Days | tuple[Days, ...] = (5, 100)
    same_orbit: bool = True
    same_sensor: bool = True
    max_sun_difference: float | None = None
    max_cloud: float | None = None
    max_cloud_land: float | None = None
    exclude_platforms: tuple[str, ...] = ()
    season: Months | str | None = None
    years_apart: int | None = None
    max_per_scene: int | None = None
    reference: str | None = None

    def __post_init__(self) -> None:
        for low, high in self.ranges():
            if not 0 <= low <= high:
                raise ParameterError("days", rule="needs 0 <= shortest <= longest", value=(low, high))
        if self.season and self.season != "summer" and not all(month in range(1, 13) for month in self.season):
            raise ParameterError("season", rule='must be two months, 1 ... 12, or "summer"', value=repr(self.season))
        if self.max_per_scene is not None and self.max_per_scene < 1:
            raise ParameterError("max_per_scene", rule="must be at least 1", value=self.max_per_scene)

    def ranges(self) -> tuple[Days, ...]:
        """The day ranges, always as a tuple of ranges."""
        first = self.days[0]
        return self.days if isinstance(first, tuple | list) else (self.days,)  # type: ignore[return-value]

    def months(self, scenes: Any) -> Months | None:
        """First and last month of the season where the scenes lie.

        Raises
        ------
        ParameterError
            "summer" is asked of a table without a column `lat`.

        Examples
        --------
        >>> PairRules(season="summer").months(pd.DataFrame({"lat": [-43.5]}))
        (12, 4)
        """
        if self.season != "summer":
            return self.season or None  # type: ignore[return-value]
        return SUMMER["north" if _latitude(scenes) >= 0 else "south"]


CROSS_YEAR = PairRules(days=(200, 530), same_orbit=False, season="summer", years_apart=1)
"""Every scene of one summer with every scene of the next, whatever its orbit: pairs of 7 to 17 months."""


def make_pairs(
    scenes: xr.Dataset | pd.DataFrame | Iterable[pystac.Item], rules: PairRules | None = None, **changes: Any
) -> pd.DataFrame:
    """All pairs of scenes that follow the rules.

    Parameters
    ----------
    scenes : cube, scene table or items
        Positions `i1`, `i2` in the result count along the cube's `time`, or the rows of the table.
    rules : PairRules, optional
    **changes
        Fields of `PairRules` to change: `make_pairs(cube, days=(330, 400))`.

    Returns
    -------
    pd.DataFrame
        One row per pair, ordered by the dates: `pair_id`, `i1`, `i2`, `t1`, `t2` (datetime64, UTC), `date_dt` [days],
        `same_orbit`, `sun_difference` [degrees], `id1`, `id2`, `sensor`. `attrs["rules"]` holds the rules,
        `attrs["report"]` says in words how many scenes and pairs each of them left out.

    Raises
    ------
    PairError
        Fewer than two scenes, or no pair follows the rules; says which rule removed how many.
    ParameterError
        A rule out of range or unknown.

    Examples
    --------
    >>> dates = pd.to_datetime(["2021-07-01", "2021-07-11", "2022-07-06"])
    >>> table = pd.DataFrame({"id": list("abc"), "datetime": dates})
    >>> make_pairs(table, days=(330, 400), same_orbit=False)[["id1", "id2", "date_dt"]].values.tolist()
    [['a', 'c', 370.0], ['b', 'c', 360.0]]
    """
    try:
        rules = replace(rules or PairRules(), **changes)
    except TypeError as error:
        known = ", ".join(asdict(PairRules()))
        raise ParameterError("pair rules", rule=f"are {known}", value=str(error).split("argument ")[-1]) from None
    scenes = scenes if isinstance(scenes, xr.Dataset | pd.DataFrame) else list(scenes)
    table, rules = _table(scenes), replace(rules, season=rules.months(scenes))
    if len(table) < 2:
        raise PairError("scenes", rule="at least two are needed for a pair", value=len(table), fix="widen the search")
    keep = _scenes_kept(table, rules)
    i1, i2 = (keep[k] for k in np.triu_indices(keep.size, 1))
    first, second = table.iloc[i1].reset_index(drop=True), table.iloc[i2].reset_index(drop=True)
    pairs = pd.DataFrame(
        {
            "i1": i1.astype(np.int64),
            "i2": i2.astype(np.int64),
            "t1": first["datetime"],
            "t2": second["datetime"],
            "date_dt": (second["datetime"] - first["datetime"]).dt.total_seconds() / 86400.0,
            # Two unknown orbits are not the same orbit.
            "same_orbit": (
                (first["relative_orbit"] == second["relative_orbit"]) & (first["relative_orbit"] != "")
            ).to_numpy(),
            "sun_difference": _angle(first, second),
            "id1": first["id"],
            "id2": second["id"],
            "sensor": first["sensor"],
        }
    )
    tests = _tests(pairs, first, second, rules)
    good = np.ones(len(pairs), bool)
    removed = [f"{int((~ok).sum())} by {name}" for name, ok in tests.items() if not ok.all()]
    for ok in tests.values():
        good &= ok
    # By id, not by position, where dates are equal: the order of the input must not show.
    pairs = pairs[good].sort_values(["t1", "t2", "id1", "id2"], kind="stable").reset_index(drop=True)
    if rules.max_per_scene is not None:
        pairs = _at_most(pairs, rules.max_per_scene)
    report = (
        f"{len(table)} scenes, {len(table) - keep.size} dropped by cloud, platform or season"
        f"{_by_year(table, keep, rules)}; of {good.size} pairs {', '.join(removed) or 'none'} removed"
    )
    if pairs.empty:
        fix = "widen days, or allow other orbits"
        raise PairError("pairs", rule="no pair of scenes follows the rules", value=report, fix=fix)
    pairs.insert(0, "pair_id", np.arange(len(pairs), dtype=np.int64))
    pairs.attrs |= {"rules": asdict(rules), "report": f"{report}; {len(pairs)} pairs"}
    log.info("%s", pairs.attrs["report"])
    return pairs


def _table(scenes: xr.Dataset | pd.DataFrame | Iterable[pystac.Item]) -> pd.DataFrame:
    if isinstance(scenes, xr.Dataset):
        names = {"scene_id": "id", "time": "datetime"}
        columns = ["scene_id", "time", "platform", "sensor", "relative_orbit", "cloud_cover"]
        columns += ["cloud_cover_land", "sun_azimuth", "sun_elevation"]
        table = pd.DataFrame({names.get(c, c): scenes[c].values for c in columns if c in scenes.coords})
    elif isinstance(scenes, pd.DataFrame):
        table = scenes.reset_index(drop=True).copy()
    else:
        table = scene_table(scenes)
    stamps = pd.to_datetime(table["datetime"])
    table["datetime"] = stamps.dt.tz_convert("UTC").dt.tz_localize(None) if stamps.dt.tz is not None else stamps
    for column, missing in (("platform", ""), ("sensor", ""), ("relative_orbit", "")):
        table[column] = table.get(column, pd.Series(missing, index=table.index))
    for column in ("cloud_cover", "cloud_cover_land", "sun_azimuth", "sun_elevation"):
        table[column] = table.get(column, pd.Series(np.nan, index=table.index)).astype(float)
    return table


def _scenes_kept(table: pd.DataFrame, rules: PairRules) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of the scenes that may take part, in time order."""
    good = ~table["platform"].str.lower().isin([p.lower() for p in rules.exclude_platforms])
    for column, limit in (("cloud_cover", rules.max_cloud), ("cloud_cover_land", rules.max_cloud_land)):
        if limit is not None:
            good &= ~(table[column] > limit)
    if rules.season:
        month, (first, last) = table["datetime"].dt.month, _months(rules)
        inside = (month >= first) & (month <= last) if first <= last else (month >= first) | (month <= last)
        good &= inside
    kept = table[good].sort_values(["datetime", "id"], kind="stable")
    return kept.index.to_numpy(np.int64)


def _months(rules: PairRules) -> Months:
    """The season of rules that know their hemisphere; without one the whole year."""
    assert not isinstance(rules.season, str)
    return rules.season or (1, 12)


def _latitude(scenes: Any) -> float:
    """Latitude of the scenes' middle [degrees]."""
    if isinstance(scenes, xr.Dataset):
        return float(grids.geobox_of(scenes).geographic_extent.centroid.coords[0][1])
    if not isinstance(scenes, pd.DataFrame):
        return float(np.mean([item.bbox[1::2] if len(item.bbox) == 4 else item.bbox[1::3] for item in scenes]))
    if "lat" not in scenes:
        fix = "add a column lat, give two months, or pair a cube or items"
        raise ParameterError("season", rule='"summer" needs to know the hemisphere', fix=fix)
    return float(scenes["lat"].mean())


def _years(times: Any, rules: PairRules) -> Any:
    """The year of each scene; of a season that runs over the new year, the one in which it ends."""
    first, last = _months(rules)
    return times.dt.year + ((times.dt.month >= first) & (first > last))


def _by_year(table: pd.DataFrame, keep: np.ndarray[Any, np.dtype[np.int64]], rules: PairRules) -> str:
    """How many scenes of each year are left, where years are paired.

    Examples
    --------
    >>> table = pd.DataFrame({"datetime": pd.to_datetime(["2020-12-24", "2021-01-09", "2021-12-20"])})
    >>> _by_year(table, np.arange(3), PairRules(season=(12, 4), years_apart=1))
    ' (2021: 2, 2022: 1 left)'
    """
    if rules.years_apart is None or not keep.size:
        return ""
    counts = _years(table.loc[keep, "datetime"], rules).value_counts().sort_index()
    return f" ({', '.join(f'{year}: {count}' for year, count in counts.items())} left)"


def _tests(pairs: pd.DataFrame, first: pd.DataFrame, second: pd.DataFrame, rules: PairRules) -> dict[str, Any]:
    days = pairs["date_dt"].to_numpy()
    # Half a day of grace: orbits repeat to the minute, users think in whole days.
    in_range = np.zeros(len(pairs), bool)
    for low, high in rules.ranges():
        in_range |= (days >= low - 0.5) & (days <= high + 0.5) & (days > 0)
    tests: dict[str, Any] = {"days": in_range}
    if rules.same_sensor:
        tests["same_sensor"] = (first["sensor"] == second["sensor"]).to_numpy(bool)
    if rules.same_orbit:
        tests["same_orbit"] = pairs["same_orbit"].to_numpy(bool)
    if rules.max_sun_difference is not None:
        tests["max_sun_difference"] = ~(pairs["sun_difference"].to_numpy() > rules.max_sun_difference)
    if rules.years_apart is not None:
        apart = _years(pairs["t2"], rules) - _years(pairs["t1"], rules)
        tests["years_apart"] = apart.to_numpy() == rules.years_apart
    if rules.reference is not None:
        tests["reference"] = ((pairs["id1"] == rules.reference) | (pairs["id2"] == rules.reference)).to_numpy(bool)
    return tests


def _angle(first: pd.DataFrame, second: pd.DataFrame) -> Any:
    """Angle between two directions to the sun [degrees]."""
    (a1, e1), (a2, e2) = (np.radians(t[["sun_azimuth", "sun_elevation"]].to_numpy()).T for t in (first, second))
    cosine = np.sin(e1) * np.sin(e2) + np.cos(e1) * np.cos(e2) * np.cos(a1 - a2)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def _at_most(pairs: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Keep short pairs first, each scene at most `limit` times."""
    used: dict[int, int] = {}
    kept = []
    for row in pairs.sort_values(["date_dt", "t1", "id1", "id2"], kind="stable").itertuples():
        one, two = int(row.i1), int(row.i2)  # type: ignore[arg-type]
        if max(used.get(one, 0), used.get(two, 0)) < limit:
            used[one], used[two] = used.get(one, 0) + 1, used.get(two, 0) + 1
            kept.append(row.Index)
    return pairs.loc[sorted(kept)].reset_index(drop=True)  # type: ignore[type-var]
