"""Which scenes there are: dates of real repeat cycles, platforms, orbits, and the faults that each scene has."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError
from .glacier import days

OFFSET_DATE = np.datetime64("2022-01-25", "ns")
"""From this day on (processing baseline 04.00) Sentinel-2 numbers are 1000 higher."""
_LANDSAT_9 = "2021-11-03"  # first pass used; the satellites then take turns every 8 days
_WINTER_WEIGHT = 0.35  # archives hold fewer usable winter scenes
TILE, PATH_ROW = "32TMS", ("195", "028")


@dataclass(frozen=True)
class WorldSpec:
    """What a synthetic world contains.

    Attributes
    ----------
    size_km : (float, float)
        Height and width [km]; the glacier scales with it.
    n_sentinel2, n_landsat : int
        Number of scenes.
    start, end : str
        First and last day.
    cloud : float
        Mean cloud cover, 0 … 0.6; scenes differ widely. 0 = no cloud, no shadow, no cirrus.
    noise : float
        Sensor noise, 1 sigma [reflectance]. The ice texture has about 0.055.
    misregistration : float
        Largest shift of a scene [m]; Landsat scenes get up to 1.5 times that.
    decorrelation : float
        Share of the ice texture that changes over the years, see `Surface`.
    snow : bool
        Whether the snow line moves with the season.
    wedge : bool
        Whether some scenes lack a corner, as at the edge of a swath.
    speed : float
        Centre-line speed far from the front [m per 365 d].
    red : bool
        Whether Sentinel-2 scenes have a red band beside the near-infrared one: the same ground, another noise.

    Examples
    --------
    >>> WorldSpec(size_km=(2.4, 3.0), n_sentinel2=4, n_landsat=0).end
    '2023-06-15'
    """

    size_km: tuple[float, float] = (7.6, 9.6)
    n_sentinel2: int = 18
    n_landsat: int = 8
    start: str = "2021-06-15"
    end: str = "2023-06-15"
    cloud: float = 0.15
    noise: float = 0.003
    misregistration: float = 3.0
    decorrelation: float = 0.4
    snow: bool = True
    wedge: bool = True
    speed: float = 320.0
    red: bool = False

    def __post_init__(self) -> None:
        for name in ("n_sentinel2", "n_landsat", "noise", "misregistration"):
            if getattr(self, name) < 0:
                raise ParameterError(name, rule="must not be negative", value=getattr(self, name))
        for name, highest in (("cloud", 0.6), ("decorrelation", 1.0)):
            if not 0 <= getattr(self, name) <= highest:
                raise ParameterError(name, rule=f"must be between 0 and {highest}", value=getattr(self, name))
        if self.n_sentinel2 + self.n_landsat < 1:
            raise ParameterError("n_sentinel2 + n_landsat", rule="must be at least 1", value=0)
        if np.datetime64(self.start) >= np.datetime64(self.end):
            raise ParameterError("end", rule=f"must be after {self.start}", value=self.end)


@dataclass(frozen=True)
class ScenePlan:
    """One scene to render.

    Attributes
    ----------
    id : str
        STAC item id.
    sensor : str
        `sentinel-2` or `landsat`.
    platform : str
        `sentinel-2a`, `sentinel-2b`, `landsat-8` or `landsat-9`.
    time : np.datetime64
        UTC.
    orbit : int
        Relative orbit of Sentinel-2; 0 for Landsat, whose path and row are fixed.
    cover : float
        Cloud cover aimed at.
    cirrus, wedge : bool
    shift : (float, float)
        Misregistration dy, dx [m], positive north and east: the image shows things that much too far north and east.
    seed : (int, int)
        Seed of sky and noise.
    """

    id: str
    sensor: str
    platform: str
    time: np.datetime64
    orbit: int
    cover: float
    cirrus: bool
    wedge: bool
    shift: tuple[float, float]
    seed: tuple[int, int]


def plan_scenes(spec: WorldSpec, *, seed: int = 0) -> list[ScenePlan]:
    """All scenes of a world, in the order of time.

    Sentinel-2: relative orbits 108 and 065, each every 5 days. Landsat-8 and (from 2021-11) Landsat-9: every 16 days.

    Raises
    ------
    ParameterError
        More scenes are asked for than the satellites took.

    Examples
    --------
    >>> plans = plan_scenes(WorldSpec())
    >>> len(plans), plans[0].id
    (26, 'S2A_32TMS_20210708_0_L2A')
    """
    # One orbit is the main one, so that pairs within an orbit abound.
    main = _passes(spec, first="2021-06-18", every=5, clock="10:20:31")
    side = _passes(spec, first="2021-06-15", every=5, clock="10:30:29")
    n_side = spec.n_sentinel2 // 3
    taken = [(t, 108) for t in _choose("n_sentinel2", main, spec.n_sentinel2 - n_side)]
    taken = sorted(taken + [(t, 65) for t in _choose("n_sentinel2", side, n_side)])
    plans = [_sentinel2(t, orbit, spec, (seed, i)) for i, (t, orbit) in enumerate(taken)]
    eight = _passes(spec, first="2021-06-20", every=16, clock="10:10:12")
    nine = _passes(spec, first=_LANDSAT_9, every=16, clock="10:09:54")
    both = np.sort(np.concatenate([eight, nine[nine >= np.datetime64(_LANDSAT_9)]]))
    taken_too = _choose("n_landsat", both, spec.n_landsat)
    plans += [_landsat(t, spec, (seed, 1000 + i)) for i, t in enumerate(taken_too)]
    return sorted(plans, key=lambda p: (p.time, p.id))


def _passes(spec: WorldSpec, *, first: str, every: int, clock: str) -> NDArray[Any]:
    day = np.datetime64(first, "D")
    behind = int((np.datetime64(spec.start, "D") - day).astype(int))
    day = day + np.timedelta64(-(-behind // every) * every, "D")
    taken = np.arange(day, np.datetime64(spec.end, "D") + 1, np.timedelta64(every, "D"))
    return taken.astype("datetime64[ns]") + (np.datetime64(f"2000-01-01T{clock}", "ns") - np.datetime64("2000-01-01"))


def _choose(name: str, times: NDArray[Any], count: int) -> list[np.datetime64]:
    """Spread the scenes evenly over the passes, with winter passes counting less."""
    if count > len(times):
        raise ParameterError(name, rule=f"asks for {count} of {len(times)} passes", fix="take fewer or a longer period")
    of_year = days(times) % 365.25
    weight = np.where((of_year < 90) | (of_year > 305), _WINTER_WEIGHT, 1.0)
    middle = (np.cumsum(weight) - weight / 2) / max(weight.sum(), 1)
    index = [int(np.abs(middle - (k + 0.5) / count).argmin()) for k in range(count)]
    for k in range(1, count):  # dense requests: the next free pass, then back from the end
        index[k] = max(index[k], index[k - 1] + 1)
    for k in range(count):
        index[k] = min(index[k], len(times) - count + k)
    return [times[i] for i in index]


def _faults(spec: WorldSpec, seed: tuple[int, int], factor: float) -> dict[str, Any]:
    rng = np.random.default_rng([*seed, 0])
    amount, angle, cover, veil = rng.random(4)
    shift = factor * spec.misregistration * (0.35 + 0.65 * amount)
    # Cover: most scenes are nearly clear, a few are half lost; the mean of 3u² is 1.
    return {
        "shift": (float(shift * np.sin(2 * np.pi * angle)), float(shift * np.cos(2 * np.pi * angle))),
        "cover": float(min(0.95, spec.cloud * 3 * cover**2)),
        "cirrus": bool(spec.cloud > 0 and veil < 0.2),
        "seed": seed,
    }


def _sentinel2(time: np.datetime64, orbit: int, spec: WorldSpec, seed: tuple[int, int]) -> ScenePlan:
    # The two satellites take turns on each orbit, every 5 days.
    letter = "ab"[int(days(time)) // 5 % 2]
    name = f"S2{letter.upper()}_{TILE}_{_digits(time)}_0_L2A"
    wedge = spec.wedge and orbit == 65
    faults = _faults(spec, seed, 1.0)
    return ScenePlan(name, "sentinel-2", f"sentinel-2{letter}", time, orbit, wedge=wedge, **faults)


def _landsat(time: np.datetime64, spec: WorldSpec, seed: tuple[int, int]) -> ScenePlan:
    number = 9 if int((time.astype("datetime64[D]") - np.datetime64(_LANDSAT_9)).astype(int)) % 16 == 0 else 8
    processed = _digits(time + np.timedelta64(8, "D"))
    name = f"LC0{number}_L1TP_{''.join(PATH_ROW)}_{_digits(time)}_{processed}_02_T1"
    wedge = spec.wedge and seed[1] % 4 == 1
    return ScenePlan(name, "landsat", f"landsat-{number}", time, 0, wedge=wedge, **_faults(spec, seed, 1.5))


def _digits(time: np.datetime64) -> str:
    return str(time.astype("datetime64[D]")).replace("-", "")
