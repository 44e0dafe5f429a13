"""Quality bands to one mask: Sentinel-2 SCL and Landsat QA_PIXEL become the same CF bit field.

Pure array functions. 0 means clear; `UNUSABLE` names the bits under which a pixel takes no part in matching. Snow and
water are not among them: a glacier is snow, and meltwater moves with it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ItemError

CLOUD, SHADOW, SNOW, WATER, NO_DATA, SATURATED, CIRRUS = 1, 2, 4, 8, 16, 32, 64
UNUSABLE = CLOUD | SHADOW | NO_DATA | SATURATED | CIRRUS
MEANINGS = {
    CLOUD: "cloud",
    SHADOW: "shadow",
    SNOW: "snow",
    WATER: "water",
    NO_DATA: "no_data",
    SATURATED: "saturated",
    CIRRUS: "cirrus",
}

_SCL = np.zeros(256, np.uint8)
_SCL[[0, 1, 3, 6, 8, 9, 10, 11]] = [NO_DATA, SATURATED, SHADOW, WATER, CLOUD, CLOUD, CIRRUS, SNOW]
"""Sen2Cor scene classification: 0 no data, 1 saturated or defective, 3 cloud shadow, 6 water, 8 cloud medium, 9 cloud
high probability, 10 thin cirrus, 11 snow. Class 2 (topographic shadow), 4, 5 and 7 are ground."""

_QA_PIXEL = {0: NO_DATA, 1: CLOUD, 2: CIRRUS, 3: CLOUD, 4: SHADOW, 5: SNOW, 7: WATER}
"""Bits of Landsat Collection 2 QA_PIXEL: 0 fill, 1 dilated cloud, 2 cirrus, 3 cloud, 4 shadow, 5 snow, 7 water."""


def decode_scl(scl: NDArray[Any]) -> NDArray[np.uint8]:
    """Sentinel-2 scene classification to mask bits.

    Examples
    --------
    >>> decode_scl(np.array([0, 4, 9, 11], np.uint8)).tolist()
    [16, 0, 1, 4]
    """
    return _SCL[np.asarray(scl).astype(np.uint8)]


def decode_qa_pixel(qa: NDArray[Any]) -> NDArray[np.uint8]:
    """Landsat Collection 2 QA_PIXEL to mask bits (USGS LSDS-1619).

    Examples
    --------
    >>> decode_qa_pixel(np.array([1, 21824, 22280, 30048], np.uint16)).tolist()
    [16, 0, 1, 4]
    """
    qa = np.asarray(qa).astype(np.uint16)
    out = np.zeros(qa.shape, np.uint8)
    for bit, meaning in _QA_PIXEL.items():
        out[(qa >> bit) & 1 == 1] |= meaning
    return out


def decode(name: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Decode a quality band by the name of its decoder; NaN (outside the scene) becomes NO_DATA.

    Raises
    ------
    ItemError
        The sensor's catalog names a decoder that does not exist.
    """
    decoders = {"scl": decode_scl, "qa_pixel": decode_qa_pixel}
    if name not in decoders:
        raise ItemError("mask decoder", rule=f"must be one of {', '.join(decoders)}", value=repr(name))
    outside = ~np.isfinite(values) if np.issubdtype(values.dtype, np.floating) else np.zeros(values.shape, bool)
    mask = decoders[name](np.where(outside, 0, values))
    mask[outside] |= NO_DATA
    return mask


def finite(image: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Pixels (h, w) that no band of an image (h, w) or (bands, h, w) lacks.

    Examples
    --------
    >>> finite(np.array([[[0.1, 0.2]], [[np.nan, 0.3]]])).tolist()
    [[False, True]]
    """
    return np.asarray(np.isfinite(image).reshape(-1, *image.shape[-2:]).all(0), bool)


def usable(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """True where a pixel may take part in matching."""
    return np.asarray((mask & UNUSABLE) == 0, bool)


def attributes() -> dict[str, Any]:
    """CF attributes of the cube's `mask`."""
    return {
        "long_name": "quality mask, 0 = clear",
        "flag_masks": np.array(list(MEANINGS), np.uint8),
        "flag_meanings": " ".join(MEANINGS.values()),
    }
