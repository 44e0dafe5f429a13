"""Screening: which pairs of a pixel may enter an inversion, and why the others may not.

Two images far apart in time no longer look alike. What is matched then lies near zero displacement, and as the formal
error of a velocity falls with the baseline, the worst pairs claim the smallest errors. Where they are the majority no
robust weight helps: they agree with each other. So every pixel is asked whether its long pairs are slower than its
short ones beyond doubt; only where they are, pairs are left out.

`gather` is compiled and called by every estimator for every pixel; it marks pairs and deletes nothing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numba import njit

from .._median import median
from ..errors import ParameterError
from ..grid import YEAR_DAYS
from ._pairs import GROUPS

if TYPE_CHECKING:  # `Observations` names the type of its screening in turn
    from ._observations import Observations

MISSING = 1
"""No velocity, or no positive error."""
LONG_BASELINE = 2
"""Longer than the baselines over which the surface of this pixel stays recognisable."""
DIRECTION = 4
"""Flows elsewhere than the short pairs."""
SENSOR = 8
"""Its satellite group is excluded, by name or because it is slower than Sentinel-2 here."""
TOO_FAST = 16
"""Faster than any glacier."""

MEANINGS: dict[int, str] = {
    MISSING: "no_velocity_or_error",
    LONG_BASELINE: "baseline_too_long",
    DIRECTION: "direction_off",
    SENSOR: "satellite_group_excluded",
    TOO_FAST: "too_fast",
}
"""What the bits of `reasons` mean; 0 = the pair may enter."""

REFERENCE_DAYS = (16.0, 32.0, 64.0, 128.0)
"""Longest baselines of the short pairs that are tried as the reference, before `Screening.long` [day]: repeat cycles of
Landsat and their doubles, as in ITS_LIVE."""
MEDIAN_ERROR = 1.2533 * 1.4826
"""Standard error of a median in MAD / sqrt(n): sqrt(pi / 2), and sigma over MAD, of a normal law."""

# The rules of the ITS_LIVE composites, in their own constants.
_EDGES = (0.0, 16.0, 32.0, 64.0, 128.0, 256.0, np.inf)
_ENOUGH, _REFERENCE = 50, 49  # pairs for the flow direction; for the reference bin, whose counter is one too high there
_SLOWEST = 50.0  # [meter/year] median speed up to which no baseline is too long
_SPREAD = 0.67 * 1.4826
_BIN_DAYS, _BIN_PAIRS, _BINS, _SENSOR_DAYS, _SENSOR_ERRORS = 73.0, 3, 3, 64.0, 3.0
_SENSOR_REFERENCE = "S2A_S2B"

_LIMITS = {"none": 0, "days": 1, "auto": 2, "itslive": 3}
_DIRECTIONS = {"never": 0, "decorrelated": 1, "always": 2}


@dataclass(frozen=True)
class Screening:
    """Which pairs may enter an inversion at a pixel.

    Parameters
    ----------
    dt_max : "auto", "itslive", float or None
        Longest baseline. "auto": `long` days at pixels where longer pairs have decorrelated, else any. "itslive": the
        dt_max of the ITS_LIVE composites, for each satellite group. A number [day] holds everywhere. None: any.
        Decorrelated means: pairs longer than `long` days are slower along the flow than the short ones by the factor
        `slowdown` and by `contrast` standard errors.
    direction : "decorrelated", "always" or "never"
        Where pairs must flow within `angle` of the short ones. "decorrelated": at the pixels of "auto", because
        elsewhere the test costs up to 6 % in accuracy and wins nothing.
    floor : float
        Added in quadrature to the displacement sigma of each pair [m]. 0: believed as given. 5-10, about one
        pixel, if the errors of long pairs are known to be too small.
    exclude : tuple of str
        Satellite groups that do not enter, e.g. ("S1A_S1B",).
    compare_groups : bool
        Leave out groups that are slower than Sentinel-2 beyond doubt (first step of the ITS_LIVE composites, which take
        it on narrow glaciers only).
    fastest : float, optional
        Faster pairs do not enter [meter/year]; ITS_LIVE takes 20 000. None: robust weights see to them.
    angle : float
        Largest angle to the flow of the short pairs [degree]. 45: noise of fast ice stays well within, and pairs near
        zero, which have all directions, lose three in four.
    long : float
        Baselines above are tested, and left out by "auto" [day]. 180: half a year, beyond which a melt season lies
        between the images; pairs of 64-128 d are still good on calving glaciers.
    min_pairs : int
        Different image pairs in each of the two classes, without which nothing is tested. 20: the error of
        a median is then known to about a quarter.
    slowdown : float
        0.7: seasons that short and long pairs sample differently, or a glacier that slows down, stay above.
    contrast : float
        3: one pixel in a thousand by chance.
    certainty : float
        The speed of short pairs, in standard errors, from which a flow direction is known. 5: to about 10 degrees.

    Examples
    --------
    >>> Screening(dt_max=180, direction="always").dt_max
    180
    """

    dt_max: float | Literal["auto", "itslive"] | None = "auto"
    direction: Literal["decorrelated", "always", "never"] = "decorrelated"
    floor: float = 0.0
    exclude: tuple[str, ...] = ()
    compare_groups: bool = False
    fastest: float | None = None
    angle: float = 45.0
    long: float = 180.0
    min_pairs: int = 20
    slowdown: float = 0.7
    contrast: float = 3.0
    certainty: float = 5.0

    def __post_init__(self) -> None:
        limit = self.dt_max
        number = isinstance(limit, int | float) and not isinstance(limit, bool) and limit > 0
        if not (limit is None or limit in ("auto", "itslive") or number):
            rule = "must be 'auto', 'itslive', a positive number of days, or None"
            raise ParameterError("Screening.dt_max", rule=rule, value=repr(limit))
        if self.direction not in _DIRECTIONS:
            rule = f"must be one of {', '.join(_DIRECTIONS)}"
            raise ParameterError("Screening.direction", rule=rule, value=repr(self.direction))
        if not isinstance(cast(object, self.exclude), tuple):
            fix = 'for example exclude=("S1A_S1B",)'
            raise ParameterError("Screening.exclude", rule="must be a tuple of names", value=self.exclude, fix=fix)
        for name, low, high in (
            ("floor", 0, np.inf), ("angle", 0, 180), ("long", 16, np.inf), ("min_pairs", 3, np.inf),
            ("slowdown", 0, 1), ("contrast", 0, np.inf), ("certainty", 0, np.inf),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                rule = f"must be {low} to {high}" if high < np.inf else f"must be at least {low}"
                raise ParameterError(f"Screening.{name}", rule=rule, value=getattr(self, name))
        if self.fastest is not None and not self.fastest > 0:
            raise ParameterError("Screening.fastest", rule="must be positive", value=self.fastest)


NOTHING = Screening(dt_max=None, direction="never")
"""Lets all pairs enter."""
ITS_LIVE = Screening(dt_max="itslive", direction="never", fastest=20_000.0)
"""The screening of the ITS_LIVE composites; they compare groups on narrow glaciers only."""


def check_groups(screening: Screening | None, groups: tuple[str, ...]) -> None:
    """A group misspelt would exclude nothing, so a name that no pair can have is an error.

    Raises
    ------
    ParameterError
        An excluded group is neither among those of the pairs nor one of ITS_LIVE.
    """
    known = {*GROUPS.values(), *groups} - {""}
    if screening is not None and not known.issuperset(screening.exclude):
        rule = f"must name groups among {', '.join(sorted(known))}"
        raise ParameterError("Screening.exclude", rule=rule, value=screening.exclude)


def rules_of(screening: Screening | None, observations: "Observations") -> tuple[Any, ...]:
    """What `gather` is told; None lets all pairs enter."""
    s, o = NOTHING if screening is None else screening, observations
    check_groups(s, o.groups)
    limit = "none" if s.dt_max is None else s.dt_max if isinstance(s.dt_max, str) else "days"
    days = {"auto": s.long, "days": s.dt_max}.get(limit, np.inf)
    constants = (
        float(cast(float, days)), np.cos(np.deg2rad(s.angle)), s.floor, np.inf if s.fastest is None else s.fastest,
        s.long, float(s.min_pairs), s.slowdown, s.contrast, s.certainty,
    )  # fmt: skip
    excluded = np.isin(np.array(o.groups), s.exclude)
    # A pair of images that overlapping tiles repeat is one witness; without repetitions nobody needs to be counted.
    _, witness = np.unique(o.image1 * o.images + o.image2, return_inverse=True)
    repeated = witness.size > 0 and witness.max() + 1 < witness.size
    reference = o.groups.index(_SENSOR_REFERENCE) if s.compare_groups and _SENSOR_REFERENCE in o.groups else -1
    first, bins = 0.0, 0
    if reference >= 0 and (o.group == reference).any():
        mine = o.group == reference
        first = float(np.floor(o.t1[mine].min()))
        bins = int((np.ceil(o.t2[mine].max()) - first) // _BIN_DAYS)
    return (
        tuple(map(float, constants)), (_LIMITS[limit], _DIRECTIONS[s.direction]), excluded,
        (witness if repeated else witness[:0]).astype(np.int64), (reference, first, bins),
    )  # fmt: skip


@njit(nogil=True, cache=True)
def displacement_sigma(data: Any, rules: Any, j: Any, pixel: Any) -> Any:
    """1-sigma of the displacement of pair j along x and y [m], with the floor."""
    t1, t2, _, _, ex, ey, _ = data
    years, floor = (t2[j] - t1[j]) / YEAR_DAYS, rules[0][2]
    x, y = ex[j, pixel % ex.shape[1]] * years, ey[j, pixel % ey.shape[1]] * years
    return np.sqrt(x * x + floor * floor), np.sqrt(y * y + floor * floor)


@njit(nogil=True, cache=True)
def gather(data: Any, pixel: Any, rules: Any, reasons: Any, scratch: Any) -> Any:
    """Which pairs of one pixel may enter.

    Parameters
    ----------
    data : tuple
        `Observations.arrays`.
    pixel : int
    rules : tuple
        From `rules_of`.
    reasons : (N,) uint8
        Filled with the bits of `MEANINGS`; 0 = may enter.
    scratch : (N,) float64
        Overwritten.

    Returns
    -------
    tuple
        Valid pairs, pairs that may enter, longest baseline let in [day, inf = any].
    """
    t1, t2, vx, vy, ex, ey, group = data
    constants, modes, excluded, _, sensors = rules
    days, cosine, _, fastest, long, min_pairs = constants[:6]
    limit, direction = modes
    ex_pixel, ey_pixel = pixel % ex.shape[1], pixel % ey.shape[1]
    valid, far = 0, 0
    for j in range(t1.size):
        a, b = ex[j, ex_pixel], ey[j, ey_pixel]
        if not (np.isfinite(vx[j, pixel]) and np.isfinite(vy[j, pixel]) and np.isfinite(a * b) and a > 0 and b > 0):
            reasons[j] = MISSING
            continue
        valid += 1
        reasons[j] = SENSOR if excluded[group[j]] else 0
        if fastest < np.inf and np.hypot(vx[j, pixel], vy[j, pixel]) > fastest:
            reasons[j] |= TOO_FAST
        far += _whole_days(t1[j], t2[j]) > long
    if sensors[2] > 0:
        _compare_groups(data, pixel, rules, reasons)
    longest, mx, my = np.inf, 0.0, 0.0
    if direction == 2 or (far >= min_pairs and (limit == 2 or direction == 1)):
        seen, mx, my = _decorrelated(_compact(data, pixel, valid, rules, reasons), constants, scratch)
        if direction == 0 or (direction == 1 and not seen):
            mx, my = 0.0, 0.0
        if limit == 2 and seen:
            longest = days
    if limit == 1:
        longest = days
    elif limit == 3:
        longest = _itslive(data, pixel, excluded.size, reasons, scratch)
    kept, length = 0, np.hypot(mx, my)
    for j in range(t1.size):
        if reasons[j] & MISSING:
            continue
        if limit < 3 and _whole_days(t1[j], t2[j]) > longest:
            reasons[j] |= LONG_BASELINE
        if length > 0.0:
            x, y = vx[j, pixel], vy[j, pixel]
            if not x * mx + y * my > cosine * length * np.hypot(x, y):
                reasons[j] |= DIRECTION
        kept += reasons[j] == 0
    return valid, kept, longest


@njit(nogil=True, cache=True)
def _whole_days(t1: Any, t2: Any) -> Any:
    """Baseline in whole days: a repeat cycle of 16 d is one, whatever the seconds."""
    return np.floor(t2 - t1 + 0.5)


@njit(nogil=True, cache=True)
def _compact(data: Any, pixel: Any, valid: Any, rules: Any, reasons: Any) -> Any:
    """Velocity, baseline and witness of the pairs not yet left out, side by side in memory."""
    t1, t2, vx, vy, _, _, _ = data
    witness = rules[3]
    x, y, days, who = np.empty(valid), np.empty(valid), np.empty(valid), np.empty(valid, np.int64)
    count = 0
    for j in range(t1.size):
        if reasons[j] == 0:
            x[count], y[count], days[count] = vx[j, pixel], vy[j, pixel], _whole_days(t1[j], t2[j])
            who[count] = witness[j] if witness.size else -1
            count += 1
    return x[:count], y[:count], days[:count], who[:count]


@njit(nogil=True, cache=True)
def _decorrelated(pairs: Any, constants: Any, scratch: Any) -> Any:
    """Whether long pairs are too slow, and the flow of the short ones (0, 0: not known)."""
    long, min_pairs, slowdown, contrast, certainty = constants[4:]
    for k in range(len(REFERENCE_DAYS) + 1):
        upper = long if k == len(REFERENCE_DAYS) else min(REFERENCE_DAYS[k], long)
        mx, count, witnesses = _median_of(pairs, (1.0, 0.0), (0.0, upper), scratch)
        if witnesses < min_pairs:
            continue
        my, _, _ = _median_of(pairs, (0.0, 1.0), (0.0, upper), scratch)
        length = np.hypot(mx, my)
        if not length > 0.0:
            continue
        flow = (mx / length, my / length)
        near, _, _ = _median_of(pairs, flow, (0.0, upper), scratch)
        error = _error(scratch, count, near, witnesses)
        if not length > certainty * error:
            continue
        far, count, witnesses = _median_of(pairs, flow, (long, np.inf), scratch)
        if witnesses < min_pairs or not far < slowdown * near:
            return False, mx, my
        far_error = _error(scratch, count, far, witnesses)
        return near - far > contrast * np.sqrt(error * error + far_error * far_error), mx, my
    return False, 0.0, 0.0


@njit(nogil=True, cache=True)
def _median_of(pairs: Any, along: Any, span: Any, scratch: Any) -> Any:
    """Median velocity along a direction of the pairs with span[0] < baseline <= span[1], which it leaves in `scratch`;
    their number, and of how many different image pairs they are."""
    x, y, days, who = pairs
    count, witnesses = 0, 0
    if who.size and who[0] >= 0:
        for j in range(who.size):
            scratch[who[j]] = 0.0
        for j in range(who.size):
            if span[0] < days[j] <= span[1]:
                witnesses += scratch[who[j]] == 0.0
                scratch[who[j]] = 1.0
    for j in range(x.size):
        if span[0] < days[j] <= span[1]:
            scratch[count] = along[0] * x[j] + along[1] * y[j]
            count += 1
    if witnesses == 0:
        witnesses = count
    return median(scratch, count) if count else np.nan, count, witnesses


@njit(nogil=True, cache=True)
def _error(values: Any, count: Any, middle: Any, witnesses: Any) -> Any:
    """Standard error of a median; overwrites the values."""
    return MEDIAN_ERROR * _deviation(values, count, middle) / np.sqrt(witnesses)


@njit(nogil=True, cache=True)
def _deviation(values: Any, count: Any, middle: Any) -> Any:
    """Median absolute deviation; overwrites the values."""
    for k in range(count):
        values[k] = abs(values[k] - middle)
    return median(values, count)


@njit(nogil=True, cache=True)
def _itslive(data: Any, pixel: Any, groups: Any, reasons: Any, scratch: Any) -> Any:
    """dt_max of the ITS_LIVE composites: marks pairs, and returns the longest limit of the groups."""
    t1, t2, vx, vy, _, _, group = data
    mx, my = 0.0, 0.0
    for component in range(2):
        for upper in _EDGES[1:]:
            count = 0
            for j in range(t1.size):
                if reasons[j] & ~TOO_FAST == 0 and t2[j] - t1[j] <= upper:
                    scratch[count] = vx[j, pixel] if component == 0 else vy[j, pixel]
                    count += 1
            if count >= _ENOUGH:
                break
        if count == 0:
            return np.inf
        if component == 0:
            mx = median(scratch, count)
        else:
            my = median(scratch, count)
    speed = np.hypot(mx, my)
    if speed <= _SLOWEST:
        return np.inf
    low, high, size = np.empty(6), np.empty(6), np.empty(6, np.int64)
    longest = 0.0
    for g in range(groups):
        reference = -1
        for b in range(6):
            count = 0
            for j in range(t1.size):
                if group[j] == g and reasons[j] & ~TOO_FAST == 0 and _EDGES[b] <= t2[j] - t1[j] < _EDGES[b + 1]:
                    scratch[count] = (vx[j, pixel] * mx + vy[j, pixel] * my) / speed
                    count += 1
            size[b] = count
            if count > 0:
                middle = median(scratch, count)
                half = _SPREAD * _deviation(scratch, count, middle)
                low[b], high[b] = middle - half, middle + half
                if reference < 0 and count >= _REFERENCE:
                    reference = b
        for b in range(6):
            if reference < 0 and size[b] > 0 and high[b] != 0.0:
                reference = b
        limit = np.inf
        for b in range(5, -1, -1):
            if reference >= 0 and size[b] > 0 and (low[b] > high[reference] or high[b] < low[reference]):
                limit = _EDGES[b]
        if size.sum() > 0:
            longest = max(longest, limit)
        for j in range(t1.size):
            if group[j] == g and t2[j] - t1[j] > limit and not reasons[j] & MISSING:
                reasons[j] |= LONG_BASELINE
    return longest


@njit(nogil=True, cache=True)
def _compare_groups(data: Any, pixel: Any, rules: Any, reasons: Any) -> Any:
    """Mark the groups whose mean velocities in common bins of 73 d are slower than those of Sentinel-2."""
    t1, t2, vx, vy, _, _, group = data
    reference, first, bins = rules[4]
    groups = rules[2].size
    mean = np.zeros((groups, 2))
    for j in range(t1.size):
        if reasons[j] == 0 and t2[j] - t1[j] <= _SENSOR_DAYS:
            mean[group[j], 0] += vx[j, pixel]
            mean[group[j], 1] += vy[j, pixel]
    along, counts = np.zeros((groups, bins)), np.zeros((groups, bins))
    for j in range(t1.size):
        if reasons[j] == 0 and t2[j] - t1[j] <= _SENSOR_DAYS:
            g, b = group[j], int(np.floor((0.5 * (t1[j] + t2[j]) - first) / _BIN_DAYS))
            length = np.hypot(mean[g, 0], mean[g, 1])
            if 0 <= b < bins and length > 0.0:
                along[g, b] += (vx[j, pixel] * mean[g, 0] + vy[j, pixel] * mean[g, 1]) / length
                counts[g, b] += 1
    for g in range(groups):
        common, total, square = 0, 0.0, 0.0
        for b in range(bins):
            if counts[g, b] >= _BIN_PAIRS and counts[reference, b] >= _BIN_PAIRS:
                difference = along[g, b] / counts[g, b] - along[reference, b] / counts[reference, b]
                common += 1
                total += difference
                square += difference * difference
        if g == reference or common <= _BINS:
            continue
        middle = total / common
        error = np.sqrt(max(square / common - middle * middle, 0.0) / (common - 1))
        if middle + _SENSOR_ERRORS * error < 0.0:
            for j in range(t1.size):
                if group[j] == g and not reasons[j] & MISSING:
                    reasons[j] |= SENSOR
