"""Hold-outs on real data: some pairs are kept back, predicted from the others, and compared.

The truth of a kept-back pair is noisy itself, so the medians mostly measure that noise: a small difference between two
estimators is a large one in what they can still improve. Three sets, all of the ITS_LIVE project: points on Columbia
and Jakobshavn glaciers, where long pairs have decorrelated and sit near zero, and a small glacier in south-east Tibet
whose cube repeats pairs, because tiles overlap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ..invert import METHODS, Observations, Screening
from ..invert._pairs import GROUPS, pairs_of

Float = NDArray[np.float64]

POINTS = {
    "columbia": "timeseries/itslive_v2_point_columbia_61.1804_-146.9751.csv",
    "jakobshavn": "timeseries/itslive_v2_point_jakobshavn_69.1117_-49.4604.csv",
}
CUBE = "cubes/itslive_v2_single_glacier_se_tibet.zarr"
SINCE = np.datetime64("2013-01-01", "ns")
LONGEST = 128.0
"""Baseline up to which kept-back pairs are scored [day]: longer ones may have decorrelated."""
_DEFAULT = Screening()
_EPOCH = np.datetime64("1970-01-01", "ns")
_DAY = np.timedelta64(86400 * 10**9, "ns")


@dataclass(frozen=True)
class HoldOut:
    """Pairs to learn from, and pairs to predict.

    Parameters
    ----------
    training : Observations
    edges : (K, 2) float64
        Dates of the kept-back pairs [day]; windows to invert for.
    vx, vy : (K, P) float64
        What was measured there [meter/year]; NaN where missing.
    """

    training: Observations
    edges: Float
    vx: Float
    vy: Float

    def difference(self, vx: NDArray[Any], vy: NDArray[Any]) -> Float:
        """Lengths of the vector differences where something was measured; NaN where nothing was predicted."""
        measured = np.isfinite(self.vx) & np.isfinite(self.vy)
        away: Float = np.hypot(vx - self.vx, vy - self.vy)[measured]
        return away


def score(
    held: HoldOut, *, method: str = "adaptive", options: Any = None, screening: Screening | None = _DEFAULT
) -> dict[str, float]:
    """Invert the training pairs over the intervals of the others.

    Returns
    -------
    dict
        `count` pairs scored, `valid` share of them with a prediction, `median` and `p75` of the vector differences
        [meter/year].
    """
    chosen = METHODS[method]
    out = chosen.estimate(held.training, held.edges, chosen.options() if options is None else options, screening)
    away = held.difference(out["vx"], out["vy"])
    known = np.isfinite(away)
    return {
        "count": float(away.size),
        "valid": float(known.mean()),
        "median": float(np.median(away[known])),
        "p75": float(np.quantile(away[known], 0.75)),
    }


def point(folder: Path, name: str) -> HoldOut:
    """The point series of a glacier: pairs since 2013 of at least 3 d, a fifth of them kept back.

    Scored are those of at most 128 d between the 2 % and the 96 % quantile of the first date.
    """
    table = pd.read_csv(folder / POINTS[name], parse_dates=["mid_date"]).sort_values("mid_date", kind="stable")
    middle, days = table["mid_date"].to_numpy().astype("M8[ns]"), table["date_dt [days]"].to_numpy(float)
    t1, t2 = dates_of_point(middle, days)
    use = (t1 >= (SINCE - _EPOCH) / _DAY) & (days >= 3)
    table, t1, t2 = table[use], t1[use], t2[use]
    vx, vy, ex, ey = (table[f"{c} [m/yr]"].to_numpy(float)[:, None] for c in ("vx", "vy", "vx_error", "vy_error"))
    satellites = (table["mission"].astype(str) + table["satellite"].astype(str)).str[:2]
    group, groups = pd.factorize(satellites.map(GROUPS), sort=True)
    training = np.random.default_rng(0).random(t1.size) < 0.8
    first, last = np.quantile(t1, 0.02), np.quantile(t1, 0.96)
    test = ~training & (t1 >= first) & (t2 <= last) & (t2 - t1 <= LONGEST)
    pairs = {"t1": t1, "t2": t2, "vx": vx, "vy": vy, "ex": ex, "ey": ey, "group": group.astype(np.int64)}
    given: dict[str, Any] = {name: a[training] for name, a in pairs.items()}
    learn = Observations(**given, groups=tuple(map(str, groups)))
    return HoldOut(learn, np.stack([t1, t2], 1)[test], vx[test], vy[test])


def dates_of_point(middle: NDArray[np.datetime64], days: Float) -> tuple[Float, Float]:
    """First and second date [day since 1970] from the middle and the baseline.

    The day of image 1 is hidden as YYMMDD in the microseconds of the middle, where that had whole seconds. It counts
    if it lies within 2 d of where the baseline puts it.

    Examples
    --------
    >>> middle = np.array(["2018-12-01T22:19:43.181115"], "M8[ns]")
    >>> t1, t2 = dates_of_point(middle, np.array([33.0]))
    >>> (t1.astype("M8[D]").astype(str).tolist(), t2.astype("M8[D]").astype(str).tolist())
    (['2018-11-15'], ['2018-12-18'])
    """
    centre = (middle - _EPOCH) / _DAY
    t1 = centre - days / 2
    token = (middle - middle.astype("M8[s]")) // np.timedelta64(1, "us")
    told = pd.to_datetime(pd.Series(token).astype(int).map("{:06d}".format), format="%y%m%d", errors="coerce")
    day = (told.to_numpy().astype("M8[ns]") - _EPOCH) / _DAY
    with np.errstate(invalid="ignore"):
        exact = np.abs(day - t1) <= 2
    return np.where(exact, day, t1), np.where(exact, np.floor(2 * centre - day), 2 * centre - t1)


def cube(folder: Path, pixels: int = 50) -> HoldOut:
    """Pixels of the south-east Tibetan cube: pairs since 2013, a fifth of the *date pairs* kept back.

    Evenly among the pixels on ice whose 50 or more pairs of at most 32 d have a median vector above 30 m/yr.
    """
    ds = xr.open_zarr(folder / CUBE, decode_timedelta=False)
    ds = ds.isel(mid_date=np.flatnonzero(ds["acquisition_date_img1"].values >= SINCE))
    fields, t1, t2 = pairs_of(ds)
    velocities = np.stack([ds[name].values.reshape(t1.size, -1) for name in ("vx", "vy")])
    chosen = moving_pixels(velocities, (t2 - t1) / _DAY, ds["landice"].values.ravel() == 1)
    chosen = chosen[np.linspace(0, chosen.size - 1, min(pixels, chosen.size)).round().astype(int)]
    vx, vy = np.ascontiguousarray(velocities[:, :, chosen])
    ex, ey = (ds[name].values.astype(np.float64)[:, None] for name in ("vx_error", "vy_error"))
    days = np.stack([t1, t2], 1).astype("M8[D]").astype(np.int64)
    _, first, number = np.unique(days, axis=0, return_index=True, return_inverse=True)
    kept_back = np.random.default_rng(0).random(first.size) >= 0.8
    training = ~kept_back[number.ravel()]
    test = ~training & ((t2 - t1) / _DAY <= LONGEST)
    per_pair: dict[str, Any] = {k: v[training] if isinstance(v, np.ndarray) else v for k, v in fields.items()}
    learn = Observations(vx=vx[training], vy=vy[training], ex=ex[training], ey=ey[training], **per_pair)
    edges = np.stack([fields["t1"], fields["t2"]], 1)[test]
    return HoldOut(learn, edges, vx[test].astype(np.float64), vy[test].astype(np.float64))


def moving_pixels(
    velocities: NDArray[np.float32], days: Float, ice: NDArray[np.bool_], *, slowest: float = 30.0, least: int = 50
) -> NDArray[np.int64]:
    """Pixels on ice with enough short pairs (at most 32 d) whose median vector is fast enough."""
    vx, vy = velocities[:, days <= 32]
    enough = np.flatnonzero(ice & (np.isfinite(vx).sum(0) >= least))
    speed = np.hypot(np.nanmedian(vx[:, enough], 0), np.nanmedian(vy[:, enough], 0))
    found: NDArray[np.int64] = enough[speed > slowest]
    return found


SETS: dict[str, Callable[[Path], HoldOut]] = {
    "columbia": lambda folder: point(folder, "columbia"),
    "jakobshavn": lambda folder: point(folder, "jakobshavn"),
    "se_tibet": cube,
}
"""The hold-outs by name."""
