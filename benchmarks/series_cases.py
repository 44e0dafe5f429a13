"""What the benchmarks of the inversion share: cubes as arrays, windows, scores, and the peer as its users run it.

TICOI 0.1.2 (the extra `interop`) reads the cube from disk, filters it as a whole, then loads, inverts and interpolates
pixel by pixel. Its clock is that of these four steps; reading is outside of it, as it is outside of ours.
"""

import contextlib
import inspect
import io
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ogive.export import to_itslive
from ogive.invert import Observations
from ogive.invert._pairs import pairs_of
from ogive.testing.velocity_cubes import VelocityTruth, velocity_cube

Series = Mapping[str, NDArray[Any]]

HAS_TICOI = find_spec("ticoi") is not None
if HAS_TICOI:
    from ticoi.core import process
    from ticoi.cube_data_classxr import CubeDataClass

HAS_SHARED = "shared" in inspect.signature(velocity_cube).parameters
LENGTH, STEP = 30.0, 5.0
"""Windows of the score [day]."""
NOON = 40800 / 86400
"""Whole days stand for images of 11:20 UTC here [day]."""
LATE = 20.0
"""The score starts this many days after the first image."""
_EPOCH, _DAY = np.datetime64("1970-01-01", "ns"), np.timedelta64(86400 * 10**9, "ns")
_AUTHOR = "ITS_LIVE, a NASA MEaSUREs project (its-live.jpl.nasa.gov)"


@dataclass(frozen=True)
class Case:
    """A cube with its truth, its pixels side by side."""

    cube: xr.Dataset
    truth: VelocityTruth
    observations: Observations

    @property
    def pixels(self) -> int:
        """How many."""
        return self.observations.vx.shape[1]

    def part(self, pixels: NDArray[np.int64]) -> Observations:
        """Some of the pixels alone."""
        o = self.observations
        return replace(o, vx=np.ascontiguousarray(o.vx[:, pixels]), vy=np.ascontiguousarray(o.vy[:, pixels]))

    def windows(self) -> NDArray[np.float64]:
        """Windows of the score in all of the data [day]."""
        o = self.observations
        start = np.arange(np.ceil(o.t1.min() + LATE), o.t2.max() - LENGTH, STEP) + NOON
        return np.stack([start, start + LENGTH], 1)

    def years(self) -> NDArray[np.float64]:
        """Calendar years inside the data [day]."""
        o = self.observations
        first, last = (_dates(np.array(t)).astype("M8[Y]").astype(int) for t in (o.t1.min(), o.t2.max()))
        starts = np.arange(first + 1, last + 1).astype("M8[Y]").astype("M8[D]").astype(float)
        return np.stack([starts[:-1], starts[1:]], 1)

    def true(self, edges: NDArray[np.float64], pixels: Any) -> NDArray[np.float64]:
        """True vx and vy [m/yr] of windows, (2, W, pixels)."""
        vx, vy = self.truth.velocity(_dates(edges[:, 0]), _dates(edges[:, 1]))
        return np.stack([vx.reshape(len(edges), -1), vy.reshape(len(edges), -1)])[..., pixels]

    def amplitude(self) -> NDArray[np.float64]:
        """Amplitude of the sinusoid that fits the true speed best, beside a line, over the data [m/yr], (pixels,)."""
        o = self.observations
        days = np.arange(np.floor(o.t1.min()), np.ceil(o.t2.max()))
        speed = np.hypot(*self.true(np.stack([days, days + 1], 1), slice(None)))
        turn = 2 * np.pi * days / 365.25
        model = np.stack([np.cos(turn), np.sin(turn), np.ones(days.size), days - days.mean()], 1)
        return np.asarray(np.hypot(*np.linalg.lstsq(model, speed)[0][:2]))


def case(name: str, shared: float = 0.0) -> Case:
    """One of the synthetic cubes; `shared`: part of the variance that all pairs of an image share."""
    cube, truth = velocity_cube(name, **({"shared": shared} if shared else {}))
    fields, t1, _ = pairs_of(cube)
    vx, vy = (np.ascontiguousarray(cube[c].values.reshape(t1.size, -1)) for c in ("vx", "vy"))
    ex, ey = (cube[f"{c}_error"].values.astype(float)[:, None] for c in ("vx", "vy"))
    return Case(cube, truth, Observations(vx=vx, vy=vy, ex=ex, ey=ey, **fields))


def network(pairs: int, pixels: int) -> Observations:
    """Any number of pairs of 5 to 400 days in ten years, a date every 5 days, 15 % outliers."""
    rng = np.random.default_rng(pairs)
    first = rng.integers(0, 650, pairs) * 5.0
    dt = rng.integers(1, 81, pairs) * 5.0
    season = np.sin(2 * np.pi * (first + dt) / 365) - np.sin(2 * np.pi * first / 365)
    v = (150 + 50 * season / (2 * np.pi * dt / 365))[:, None] * np.ones(pixels)
    error = 365 * 1.5 / dt[:, None]
    vx, vy = v + rng.normal(size=(2, pairs, pixels)) * error
    wild = rng.random((pairs, pixels)) < 0.15
    vx[wild], vy[wild] = rng.uniform(-1000, 1000, (2, int(wild.sum())))
    return Observations(first + 17000.0, first + 17000.0 + dt, vx, vy, error, error)


def timed(run: Callable[[], Series], repeats: int) -> tuple[float, Series]:
    """CPU seconds, the least of the repeats, and what came out."""
    least, out = np.inf, run()
    for _ in range(repeats):
        start = time.process_time()
        out = run()
        least = min(least, time.process_time() - start)
    return least, out


def score(series: Series, true: NDArray[np.float64], where: Any = True) -> dict[str, float]:
    """RMSE of the vectors, bias along flow, coverage of the intervals, share of valid windows."""
    found, sigma = (np.stack([series[f"{c}{end}"] for c in ("vx", "vy")]) for end in ("", "_error"))
    good = np.isfinite(found).all(axis=0) & where
    error, sigma = (found - true)[:, good], sigma[:, good]
    along = (error * true[:, good]).sum(axis=0) / np.hypot(*true[:, good])
    figures = {"RMSE": float(np.sqrt((error**2).sum(axis=0).mean())), "bias": float(along.mean())}
    if np.isfinite(sigma).all():
        z = np.abs(error) / sigma
        figures |= {"within 1 s": float((z < 1).mean()), "within 1.96 s": float((z < 1.96).mean())}
    return figures | {"valid": float(good.sum() / np.sum(np.broadcast_to(where, good.shape)))}


@dataclass(frozen=True)
class PeerRun:
    """What TICOI gave for some pixels of a cube."""

    edges: NDArray[np.float64]
    series: Series
    seconds: float
    """CPU time of one pixel: its share of the filter of the whole cube, load, invert, interpolate."""


def write(one: Case, path: Path) -> None:
    """The cube as TICOI reads it."""
    sentinel = one.cube["satellite_img1"].values == "2A"
    codes = {
        f"{kind}_img{k}": ("mid_date", np.where(sentinel, *values))
        for k in (1, 2)
        for kind, values in {"mission": ("S", "L"), "sensor": ("MSI", "C")}.items()
    }
    to_itslive(one.cube.assign_coords(codes), path, author=_AUTHOR, overwrite=True)


def ticoi(path: Path, one: Case, pixels: Sequence[int], coef: float, regu: str, filtered: str | None) -> PeerRun:
    """The published program on some pixels of a cube that `write` wrote."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        peer = CubeDataClass()
        peer.load(str(path), chunks=-1)
        first, last = peer.prepare_interpolation_date()
        start = time.process_time()
        prior, _ = peer.filter_cube_before_inversion(delete_outliers=filtered, regu=regu, proj=peer.ds.proj4)
        seconds = (time.process_time() - start) / one.pixels
        tables = []
        width = one.cube.sizes["x"]
        start = time.process_time()
        for pixel in pixels:
            y, x = float(one.cube["y"][pixel // width]), float(one.cube["x"][pixel % width])
            tables.append(
                process(
                    peer, x, y, None, coef=coef, regu=regu, obs_filt=prior, proj=peer.ds.proj4, conf=False,
                    first_date_interpol=first, last_date_interpol=last,
                )
            )  # fmt: skip
        seconds += (time.process_time() - start) / len(pixels)
    edges = np.stack([(tables[0][c].values - _EPOCH) / _DAY for c in ("date1", "date2")], 1)
    series = {c: np.stack([t[c].values for t in tables], 1) for c in ("vx", "vy")}
    none = np.full_like(series["vx"], np.nan)
    return PeerRun(edges, {**series, "vx_error": none, "vy_error": none}, seconds)


def _dates(days: NDArray[np.float64]) -> NDArray[np.datetime64]:
    dates: NDArray[np.datetime64] = _EPOCH + np.round(days * 86400).astype(np.int64) * np.timedelta64(10**9, "ns")
    return dates
