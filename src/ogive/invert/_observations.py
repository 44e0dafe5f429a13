"""What every estimator gets and gives: the pairs of a block as plain arrays, and the description of its answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .screening import Screening

Real = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Observations:
    """N image pairs at P pixels.

    Parameters
    ----------
    t1, t2 : (N,) float64
        Acquisition times of the first and the second image [day since 1970-01-01], t1 < t2.
    vx, vy : (N, P) float
        Mean velocity between them [meter/year of 365 d]; NaN where missing.
    ex, ey : (N, P) or (N, 1) float
        Its 1-sigma error [meter/year]; one column serves all pixels. A pair without a positive error is not used.
    image1, image2 : (N,) int64, optional
        Which image is the first and the second of each pair, numbered from 0. Default: one for each acquisition time.
    group : (N,) int64, optional
        Satellite group of each pair, a position in `groups`. Default: all of one group.
    source : (N,) int64, optional
        Data source of each pair, a position in `sources`. Default: all from one source.
    groups, sources : tuple of str
        Names, e.g. ("L8_L9", "S2A_S2B"), ("ogive", "ITS_LIVE").
    kappa : (P,) float64, optional
        Smoothness that a guide gives; NaN where it is to be chosen.
    season : (P,) complex128, optional
        What a guide says of the phase of the season: a number of that phase and of size 1 / variance [1/radian^2].

    Examples
    --------
    >>> t, v, e = np.arange(3.0), np.ones((3, 1)), np.ones((3, 1))
    >>> pairs = Observations(t, t + 1, v, v, e, e)
    >>> pairs.image1.tolist(), pairs.image2.tolist(), pairs.images
    ([0, 1, 2], [1, 2, 3], 4)
    """

    t1: NDArray[np.float64]
    t2: NDArray[np.float64]
    vx: Real
    vy: Real
    ex: Real
    ey: Real
    image1: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    image2: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    group: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    source: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    groups: tuple[str, ...] = ("",)
    sources: tuple[str, ...] = ("",)
    kappa: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    season: NDArray[np.complex128] = field(default_factory=lambda: np.empty(0, np.complex128))

    def __post_init__(self) -> None:
        count = len(self.t1)
        if self.image1.size != count:
            _, numbers = np.unique(np.concatenate([self.t1, self.t2]), return_inverse=True)
            object.__setattr__(self, "image1", numbers[:count].astype(np.int64))
            object.__setattr__(self, "image2", numbers[count:].astype(np.int64))
        for name in ("group", "source"):
            if getattr(self, name).size != count:
                object.__setattr__(self, name, np.zeros(count, np.int64))
        for name, unknown in (("kappa", np.nan), ("season", 0j)):
            if getattr(self, name).size != self.vx.shape[1]:
                object.__setattr__(self, name, np.full(self.vx.shape[1], unknown))

    @property
    def images(self) -> int:
        """How many images the pairs were made of."""
        return int(np.max([self.image1, self.image2])) + 1

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What `screening.gather` reads."""
        return self.t1, self.t2, self.vx, self.vy, self.ex, self.ey, self.group


def default_screening(options: Any) -> Screening:
    """What suits most methods."""
    return Screening()


class Variable(NamedTuple):
    """One variable of an answer."""

    dims: str
    """"t": one value for each window; "": one for each pixel."""
    dtype: type
    attrs: dict[str, Any]


class Estimator(Protocol):
    """The compiled heart of a method."""

    def __call__(
        self, observations: Observations, edges: NDArray[np.float64], options: Any, screening: Screening | None
    ) -> dict[str, NDArray[np.generic]]:
        """Return the variables of the method, (W, P) or (P,), for W windows [day]."""
        ...


@dataclass(frozen=True)
class Method:
    """One way to invert.

    Parameters
    ----------
    estimate : Estimator
    options : callable
        Makes its options with default values.
    variables : mapping
        What it returns.
    every : str
        Default windows, a pandas offset.
    screening : callable
        Makes its default screening from its options.
    guided : bool
        Whether it uses `Observations.kappa` and `season`.
    """

    estimate: Estimator
    options: Callable[[], Any]
    variables: Mapping[str, Variable]
    every: str = "30D"
    screening: Callable[[Any], Screening] = default_screening
    guided: bool = False
