"""Random textures that can be evaluated anywhere: fractal noise, a B-spline through it, and nothing else.

A synthetic image pair is exact only when both images sample *one* continuous function. Here that function is the
interpolating B-spline of a raster that is already blurred by a point spread function: no frequency is left that the
spline could not follow, so a displaced copy is exact to about 1e-6 of the standard deviation.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter

from ..errors import ParameterError

Floats = NDArray[np.float64]
Order = Literal[1, 3, 5]


def spectrum(shape: tuple[int, int], rng: np.random.Generator, *, amplitude: NDArray[Any]) -> Floats:
    """Real noise with a given amplitude spectrum, standard deviation 1.

    Parameters
    ----------
    shape : (int, int)
        Rows, columns.
    rng : numpy.random.Generator
        Two draws of the `rfft2` shape are taken: real parts, then imaginary parts.
    amplitude : (rows, columns // 2 + 1) array
        Amplitude at each frequency of `rfft2`.

    Returns
    -------
    (rows, columns) float64 array, periodic in both directions.

    Examples
    --------
    >>> field = spectrum((8, 8), np.random.default_rng(0), amplitude=np.ones((8, 5)))
    >>> field.shape, round(float(field.std()), 12)
    ((8, 8), 1.0)
    """
    real = rng.standard_normal(amplitude.shape)
    field = np.fft.irfft2(amplitude * (real + 1j * rng.standard_normal(amplitude.shape)), s=shape)
    return np.asarray(field / field.std(), np.float64)


def power_law(
    shape: tuple[int, int],
    *,
    exponent: float,
    longest: float,
    psf: float,
    spacing: float = 1.0,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> Floats:
    """Amplitude spectrum k^-exponent, cut at long waves and blurred by a Gaussian point spread function.

    Parameters
    ----------
    shape : (int, int)
        Rows, columns of the raster.
    exponent : float
        Fall-off of the amplitude; 1.3 resembles glacier surfaces, 2 and more terrain.
    longest : float
        Longest wavelength kept, in the unit of `spacing`.
    psf : float
        Standard deviation of the point spread function, in the unit of `spacing`; 0 for none.
    spacing : float
        Distance between raster points.
    stretch : (float, float)
        Elongation of the features in y and in x (1 = isotropic).

    Returns
    -------
    (rows, columns // 2 + 1) float64 array for `spectrum`.

    Examples
    --------
    >>> power_law((4, 4), exponent=1.0, longest=4.0, psf=0.0)[0].tolist()
    [0.0, 4.0, 2.0]
    """
    ky = np.fft.fftfreq(shape[0])[:, None] * (stretch[0] / spacing)
    kx = np.fft.rfftfreq(shape[1])[None, :] * (stretch[1] / spacing)
    k = np.sqrt(ky * ky + kx * kx)
    with np.errstate(divide="ignore"):
        amplitude = np.where(k >= 1 / longest, k**-exponent, 0.0)
    if psf:
        # The blur acts on true distances, whatever the stretch of the features.
        true = (ky / stretch[0]) ** 2 + (kx / stretch[1]) ** 2
        amplitude = amplitude * np.exp(-2 * np.pi**2 * psf**2 * true)
    return np.asarray(amplitude, np.float64)


@dataclass(frozen=True)
class Texture:
    """A continuous function of position: the B-spline through a raster.

    Attributes
    ----------
    coefficients : (rows, columns) float64 array
        Spline coefficients (`scipy.ndimage.spline_filter`, mirrored at the edges).
    origin : (float, float)
        y, x of the first raster point.
    spacing : (float, float)
        Distance between raster points in y, x; negative y spacing for a raster whose rows go south.
    order : int
        Order of the spline.

    Examples
    --------
    >>> texture = Texture.through(np.arange(64.0).reshape(8, 8), spacing=(10.0, 10.0), order=3)
    >>> float(texture(20.0, 30.0).round(6))
    19.0
    """

    coefficients: Floats
    origin: tuple[float, float]
    spacing: tuple[float, float]
    order: Order

    @classmethod
    def through(
        cls,
        values: NDArray[Any],
        origin: tuple[float, float] = (0.0, 0.0),
        *,
        spacing: tuple[float, float] = (1.0, 1.0),
        order: Order = 5,
    ) -> "Texture":
        """The texture that takes the given values at the raster points."""
        coefficients = np.asarray(values, np.float64)
        if order > 1:  # below that the values are the coefficients
            coefficients = spline_filter(coefficients, order=order, output=np.float64, mode="mirror")
        return cls(coefficients, origin, spacing, order)

    def __call__(self, y: ArrayLike, x: ArrayLike) -> Floats:
        """Values at the positions (y, x), arrays that broadcast against each other."""
        rows, columns = np.broadcast_arrays(
            (np.asarray(y, np.float64) - self.origin[0]) / self.spacing[0],
            (np.asarray(x, np.float64) - self.origin[1]) / self.spacing[1],
        )
        # map_coordinates knows no scalars, so the positions go in as a list.
        at = np.stack([rows.ravel(), columns.ravel()])
        values = map_coordinates(self.coefficients, at, order=self.order, prefilter=False, mode="mirror")
        return np.asarray(values, np.float64).reshape(rows.shape)


def fractal_scene(size: int, *, seed: int) -> Texture:
    """The fractal scene of the truth cases: self-similar texture seen through a point spread function of 0.6 px.

    Four raster points to a pixel, amplitude k^-1.3 down to wavelengths of 64 px, margin 32 px on every side; the
    modulation transfer is 0.17 at the Nyquist frequency, as for a well-built optical sensor.

    Parameters
    ----------
    size : int
        Width and height that can be sampled [px], at least 32.
    seed : int
        Seed of the noise.

    Returns
    -------
    Texture
        A function of pixel position (y, x); its standard deviation is 1.

    Raises
    ------
    ParameterError
        `size` is below 32 px.

    Examples
    --------
    >>> scene = fractal_scene(32, seed=0)
    >>> scene(np.arange(32)[:, None], np.arange(32)).shape
    (32, 32)
    """
    if size < 32:
        raise ParameterError("size", rule="must be at least 32 px", value=size, fix="use 128")
    m = 4 * (size + 64)
    amplitude = power_law((m, m), exponent=1.3, longest=64.0, psf=0.6, spacing=0.25)
    field = spectrum((m, m), np.random.default_rng(seed), amplitude=amplitude).astype(np.float32)
    return Texture.through(field, (-32.0, -32.0), spacing=(0.25, 0.25))


def image_scene(image: NDArray[Any]) -> Texture:
    """A real image as a scene: slightly smoothed (0.5 px), standardised, one raster point to a pixel.

    Parameters
    ----------
    image : (rows, columns) array
        One band, no gaps. 32 px on every side serve as margin.

    Returns
    -------
    Texture
        A function of (y, x) where (0, 0) is the pixel 32 px inside the image.

    Raises
    ------
    ParameterError
        Not two-dimensional, not finite, or smaller than 96 px.

    Examples
    --------
    >>> image_scene(np.random.default_rng(0).random((96, 96)))(0.0, 0.0).shape
    ()
    """
    if image.ndim != 2 or min(image.shape) < 96 or not np.isfinite(image).all():
        raise ParameterError("image", rule="must be 2-D, finite and at least 96 px wide", value=image.shape)
    smooth = gaussian_filter(image.astype(np.float32), 0.5, mode="reflect")
    return Texture.through((smooth - smooth.mean()) / smooth.std(), (-32.0, -32.0))
