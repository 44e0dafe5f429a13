"""Published velocities of the synthetic glacier: a cube in the ITS_LIVE layout, fast in one year and slow in another.

Pairs follow a Sentinel-2 calendar; displacements are exact, because the yearly factor only changes *when* a particle
gets along its streamline. On top come noise in metres, outliers, gaps, and long pairs that have lost the surface.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .. import grid
from ..export import to_itslive
from .glacier import Glacier, days, season_integral
from .textures import Floats

_PASSES = 5  # days between two images
_LONGEST = 30  # days between the images of a pair, but for those a year apart
_NOISE = 1.5  # m of displacement, 1 sigma of one vector
_OUTLIERS, _MISSING = 0.08, 0.10
_STALE = 0.5  # share of the vectors of yearly pairs that say "hardly any motion"


def itslive_cube(
    path: str | Path, glacier: Glacier, factors: Mapping[int, float], *, cell: float = 120.0, seed: int = 0
) -> Path:
    """Write a cube as ITS_LIVE publishes them, with pairs over all years of `factors`.

    Parameters
    ----------
    path : path
        Target folder, by custom `*.zarr`.
    glacier : Glacier
        Its season goes on as it is; its speed is multiplied by the factor of the calendar year.
    factors : mapping year -> float
        Consecutive years. The mean velocity of a window within a year is `glacier.window_velocity` times its factor.
    cell : float
        Cell size [m].
    seed : int
        Seed of everything random.

    Returns
    -------
    Path

    Examples
    --------
    >>> import tempfile
    >>> from ogive import open_velocity
    >>> folder = Path(tempfile.mkdtemp())
    >>> cube = itslive_cube(folder / "cube.zarr", Glacier(extent=(1200.0, 1500.0)), {2020: 1.2, 2021: 1.0})
    >>> velocity = open_velocity(cube)
    >>> dict(velocity.sizes), str(velocity["satellite_img1"].values[0])
    ({'mid_date': 1074, 'y': 10, 'x': 12}, '2A')
    """
    rng = np.random.default_rng(seed)
    first, last = np.datetime64(f"{min(factors)}-01-02T10:20", "ns"), np.datetime64(f"{max(factors) + 1}-01-01", "ns")
    passes = np.arange(first, last, np.timedelta64(_PASSES, "D"))
    i, j = np.triu_indices(len(passes), 1)
    step = _PASSES * (j - i)
    keep = (step <= _LONGEST) | (np.abs(step - 365) <= _PASSES)
    t1, t2, step = passes[i[keep]], passes[j[keep]], step[keep]
    box = glacier.geobox(cell)
    c = grid.coordinates(box)
    tau = years_of_motion(t1, t2, factors)[:, None, None]
    metres = np.stack(glacier.advance(tau, c["y"].values[:, None], c["x"].values), -1)
    wild = rng.random(metres.shape[:3]) < _OUTLIERS
    stale = (rng.random(metres.shape[:3]) < _STALE) & (step[:, None, None] > 180)
    metres[stale] = 0.0
    metres += _NOISE * rng.standard_normal(metres.shape)
    metres[wild] = rng.uniform(-100, 100, (int(wild.sum()), 2))
    metres[rng.random(metres.shape[:3]) < _MISSING] = np.nan
    to_itslive(_velocity(metres, t1, t2, box), path, author="ogive, synthetic")
    return Path(path)


def years_of_motion(t1: NDArray[Any], t2: NDArray[Any], factors: Mapping[int, float]) -> Floats:
    """τ between dates, each calendar year with its factor [365 d].

    Examples
    --------
    >>> dates = np.array(["2020-01-01", "2021-01-01", "2022-01-01"], "M8[ns]")
    >>> one, two = years_of_motion(dates[:2], dates[1:], {2020: 2.0, 2021: 1.0})
    >>> round(float(one / two), 2)
    2.0
    """
    total = np.zeros(t1.shape)
    for year, factor in factors.items():
        edges = days(f"{year}-01-01"), days(f"{year + 1}-01-01")
        total += factor * (season_integral(days(t2).clip(*edges)) - season_integral(days(t1).clip(*edges)))
    return total / grid.YEAR_DAYS


def _velocity(metres: Floats, t1: NDArray[Any], t2: NDArray[Any], box: Any) -> xr.Dataset:
    """Displacements (pair, y, x, [dy, dx]) as a velocity with the codes of Sentinel-2A."""
    rate = grid.YEAR_DAYS / ((t2 - t1) / np.timedelta64(1, "D"))
    cube, error = ("mid_date", "y", "x"), (_NOISE * rate).astype(np.float32)
    vy, vx = np.moveaxis((metres * rate[:, None, None, None]).astype(np.float32), -1, 0)
    codes = {"mission": "S", "satellite": "2A", "sensor": "MSI"}
    pairs = {"acquisition_date_img1": t1, "acquisition_date_img2": t2, "mid_date": t1 + (t2 - t1) // 2}
    pairs |= {f"{kind}_img{k}": np.full(len(t1), code) for kind, code in codes.items() for k in (1, 2)}
    return xr.Dataset(
        {"vx": (cube, vx), "vy": (cube, vy), "vx_error": ("mid_date", error), "vy_error": ("mid_date", error)},
        {**{n: ("mid_date", v) for n, v in pairs.items()}, **grid.coordinates(box), "mapping": grid.mapping(box)},
    )
