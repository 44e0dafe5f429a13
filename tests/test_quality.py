"""Quality bands become one mask: every code of the tables, and the real bands of a Sentinel-2 and a Landsat scene."""

import numpy as np
import pytest
import rasterio

from ogive import quality
from ogive.errors import ItemError
from ogive.quality import CIRRUS, CLOUD, NO_DATA, SATURATED, SHADOW, SNOW, UNUSABLE, WATER


def test_every_class_of_the_scene_classification() -> None:
    expected = [NO_DATA, SATURATED, 0, SHADOW, 0, 0, WATER, 0, CLOUD, CLOUD, CIRRUS, SNOW]
    assert quality.decode_scl(np.arange(12, dtype=np.uint8)).tolist() == expected
    assert quality.decode_scl(np.arange(12, dtype=np.uint8)).dtype == np.uint8


def test_every_bit_of_qa_pixel() -> None:
    expected = [NO_DATA, CLOUD, CIRRUS, CLOUD, SHADOW, SNOW, 0, WATER, 0, 0, 0, 0, 0, 0, 0, 0]
    assert quality.decode_qa_pixel((1 << np.arange(16)).astype(np.uint16)).tolist() == expected
    # Bits add up: cloud, its shadow and snow in one pixel.
    assert quality.decode_qa_pixel(np.array([0b111000], np.uint16)).tolist() == [CLOUD | SHADOW | SNOW]


def test_confidence_bits_of_qa_pixel_say_nothing() -> None:
    codes = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    np.testing.assert_array_equal(quality.decode_qa_pixel(codes), quality.decode_qa_pixel(codes & 0xBF))
    assert (quality.decode_qa_pixel(codes) > 0).mean() > 0.9


def test_snow_and_water_are_matched_and_the_rest_is_not() -> None:
    bits = np.array([0, SNOW, WATER, SNOW | WATER, CLOUD, SHADOW, NO_DATA, SATURATED, CIRRUS, SNOW | CLOUD], np.uint8)
    assert quality.usable(bits).tolist() == [True] * 4 + [False] * 6
    assert UNUSABLE & (SNOW | WATER) == 0


def test_outside_the_scene_is_no_data() -> None:
    scl = np.array([[4.0, np.nan], [9.0, 11.0]], np.float32)
    assert quality.decode("scl", scl).tolist() == [[0, NO_DATA], [CLOUD, SNOW]]
    qa = np.array([22280.0, np.nan, 30048.0])
    assert quality.decode("qa_pixel", qa).tolist() == [CLOUD, NO_DATA, SNOW]
    assert np.isnan(qa[1])  # the input is left alone


def test_an_unknown_decoder_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ItemError, match=r"mask decoder: must be one of scl, qa_pixel \(found 'fmask'\)"):
        quality.decode("fmask", np.zeros(3, np.uint8))


def test_attributes_name_each_bit_once() -> None:
    attributes = quality.attributes()
    masks = attributes["flag_masks"]
    assert masks.dtype == np.uint8
    assert len(attributes["flag_meanings"].split()) == len(masks) == 7
    assert np.bitwise_or.reduce(masks) == masks.sum() == 127


@pytest.mark.real
def test_landsat_over_greenland(data) -> None:
    folder = data / "masks" / "landsat_c2_greenland_005009"
    with rasterio.open(folder / "LC08_L2SP_005009_20150710_20200908_02_T2_QA_PIXEL.TIF") as file:
        qa = file.read(1)
    assert len(np.unique(qa)) == 11
    # The low byte of each code, read off the bit table of the product guide by hand; the high byte is confidence.
    meaning = {
        1: NO_DATA, 22280: CLOUD, 23826: CLOUD | SHADOW, 23888: SHADOW, 24082: CLOUD | SHADOW, 24144: SHADOW,
        29986: CLOUD | SNOW, 30048: SNOW, 30242: CLOUD | SNOW, 30304: SNOW, 55052: CLOUD | CIRRUS,
    }  # fmt: skip
    mask = quality.decode("qa_pixel", qa)
    for code, bits in meaning.items():
        assert (mask[qa == code] == bits).all()
    counts = {name: int((mask & bit != 0).sum()) for bit, name in quality.MEANINGS.items()}
    assert counts == {
        "cloud": 73833 + 813 + 2909 + 440 + 1178 + 1274, "shadow": 813 + 2497 + 2909 + 634,
        "snow": 440 + 52484 + 1178 + 1310, "water": 0, "no_data": 124772, "saturated": 0, "cirrus": 1274,
    }  # fmt: skip
    assert int(quality.usable(mask).sum()) == 52484 + 1310


@pytest.mark.real
def test_sentinel_2_scene(data) -> None:
    with rasterio.open(data / "masks" / "s2_l2a_29RKH_cog" / "SCL.tif") as file:
        scl = file.read(1)
    mask = quality.decode("scl", scl)
    assert mask.shape == (549, 549)
    counts = {int(v): int(n) for v, n in zip(*np.unique(mask, return_counts=True), strict=True)}
    # Classes 2 and 5 and 7 (dark, bare, unclassified) are ground; 8 and 9 cloud; 10 cirrus.
    assert counts == {0: 1 + 289159 + 3, CLOUD: 967 + 837, CIRRUS: 10434}
    assert float(quality.usable(mask).mean()) == pytest.approx(0.959396, abs=1e-6)
