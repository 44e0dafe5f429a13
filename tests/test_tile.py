"""One tile tried is bit for bit what a run computes there."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ogive as og
from ogive import view
from ogive.errors import GridError, PairError, ParameterError
from ogive.kernels import OrientationCorrelation, PhaseCorrelation
from ogive.tile import try_tile

KERNELS = [
    og.NCC(chip=16, search=4, step=4),
    og.NCC(chip=(24, 32), search=4, step=8, refine="affine"),
    PhaseCorrelation(chip=32, search=4, step=8),
    OrientationCorrelation(chip=16, search=4, step=8),
]
PLACES = [(601_300, 5_098_700), (600_010, 5_099_990), (602_630, 5_097_610), (600_900, 5_098_750)]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_the_same_bits_as_in_a_run(moving: Callable[..., Any], kernel: Any) -> None:
    cube, _ = moving(holes=True)
    pairs = og.make_pairs(cube)
    whole = og.track(cube, pairs, kernel).compute()
    for x, y in PLACES:
        tile = try_tile(cube, pairs, kernel, x=x, y=y, pair=1, cells=6)
        assert tile.sizes["y"] == tile.sizes["x"] == 6
        assert og.grid.geobox_of(tile).shape == (6, 6)
        there = whole.isel(mid_date=[1]).sel(y=tile["y"], x=tile["x"])
        for name in there.data_vars:
            np.testing.assert_array_equal(tile[name].values, there[name].values, err_msg=f"{name} at {x}, {y}")
        assert np.abs(tile["y"].values - y).min() <= kernel.step * 10
    assert np.isfinite(whole["vx"].values).mean() > 0.3


def test_only_the_window_under_the_tile_is_read(moving: Callable[..., Any]) -> None:
    cube, reader = moving()
    kernel = og.NCC(chip=16, search=2, step=4, refine="quadric")
    reader.reads.clear()
    try_tile(cube, og.make_pairs(cube), kernel, x=601_300, y=5_098_700, cells=4)
    assert reader.reads
    assert max(max(shape) for _, shape in reader.reads) <= 4 * 4 + 2 * kernel.halo() + 2 * 4


def test_longitude_and_latitude(moving: Callable[..., Any]) -> None:
    cube, _ = moving()
    pairs, kernel = og.make_pairs(cube), og.NCC(chip=16, search=2, step=4, refine="quadric")
    lon, lat = 10.30913, 46.03393
    tile = try_tile(cube, pairs, kernel, x=lon, y=lat, cells=4, crs=4326)
    centre = og.grid.geobox_of(tile).geographic_extent.boundingbox
    assert centre.left < lon < centre.right
    assert centre.bottom < lat < centre.top


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"x": 0.0}, GridError, "inside the cube"),
        ({"pair": 9}, PairError, "a row 0 ... 2"),
        ({"cells": 0}, ParameterError, "at least 1"),
    ],
)
def test_what_cannot_be_tried(
    moving: Callable[..., Any], changes: dict[str, Any], error: type[Exception], told: str
) -> None:
    cube, reader = moving()
    with pytest.raises(error, match=told):
        try_tile(cube, og.make_pairs(cube), **{"x": 601_300, "y": 5_098_700, **changes})
    assert reader.count == 0


def test_a_function_of_the_user(moving: Callable[..., Any]) -> None:
    def still(first: Any, second: Any, *valid: Any) -> Any:
        cells = tuple((n - 64) // 8 for n in first.shape)
        return np.full(cells, 2.0), np.zeros(cells)

    cube, _ = moving()
    tile = try_tile(cube, og.make_pairs(cube), still, x=601_300, y=5_098_700, cells=4)
    # Two pixels of 10 m southwards in ten days.
    np.testing.assert_allclose(tile["vy"].values, -20 * 36.5, rtol=1e-6)


def test_its_picture(moving: Callable[..., Any]) -> None:
    cube, _ = moving(holes=True)
    pairs = og.make_pairs(cube)
    tile = try_tile(cube, pairs, og.NCC(chip=16, search=4, step=4, refine="quadric"), x=601_300, y=5_098_700, cells=12)
    figure = view.tile_map(tile)
    titles = [ax.get_title() for ax in figure.axes[:3]]
    assert titles == ["Speed and direction", "Correlation", "Why there is no vector"]
    share = round(100 * np.isfinite(tile["v"].values).mean())
    assert f"{share} % of 144 vectors valid" in figure.get_suptitle()
    legend = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert any(text.startswith("valid (") for text in legend)
    with pytest.raises(ParameterError, match="try_tile"):
        view.tile_map(tile.drop_vars("image"))
