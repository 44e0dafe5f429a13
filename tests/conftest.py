"""Shared by the tests: the real data folder, and small cubes whose pixels are a known function of map position."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pystac
import pytest
import xarray as xr
from affine import Affine
from hypothesis import HealthCheck, settings
from odc.geo.geobox import GeoBox

import ogive as og
from ogive.testing.readers import FakeReader

# The same examples in every run: a failure that comes and goes is no failure one can mend.
settings.register_profile(
    "ogive",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("ogive")

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
GRID = GeoBox((240, 264), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where the real data are, the tests of them run; where they are not, they are skipped by name."""
    if DATA.is_dir():
        return
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(pytest.mark.skip(reason=f"no real data at {DATA}"))


@pytest.fixture(scope="module", autouse=True)
def no_client_left_behind() -> Iterator[None]:
    """A client that outlives its cluster stays Dask's default, and the next compute anywhere hangs."""
    yield
    if "distributed" in sys.modules:
        with pytest.raises(ValueError, match="No clients found"):
            sys.modules["distributed"].default_client()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data."""
    return DATA


@pytest.fixture
def clock() -> SimpleNamespace:
    """Stands in for `time`: a second passes at each look."""
    return SimpleNamespace(monotonic=partial(next, itertools.count(1.0)))


def make_item(number: int, date: str, grid: GeoBox = GRID, **properties: Any) -> pystac.Item:
    """A Sentinel-2 item without files, enough for the fake reader."""
    stamp = pd.Timestamp(date, tz="UTC")
    box = grid.geographic_extent
    item = pystac.Item(
        id=f"S2A_32TPS_{stamp:%Y%m%d}_{number}_L2A",
        geometry=box.json, bbox=list(box.boundingbox), datetime=stamp.to_pydatetime(), collection="sentinel-2-l2a",
        properties={"platform": "sentinel-2a", "constellation": "sentinel-2", "sat:relative_orbit": 22,
                    "eo:cloud_cover": 5.0, "view:sun_azimuth": 150.0, "view:sun_elevation": 50.0,
                    "s2:processing_baseline": "03.01", "proj:code": f"EPSG:{grid.crs.epsg}", **properties},
    )  # fmt: skip
    fields = {"proj:shape": list(grid.shape), "proj:transform": list(grid.affine)[:6]}
    item.add_asset("nir", pystac.Asset(f"{item.id}_nir.tif", extra_fields=fields))
    return item


@pytest.fixture(scope="session")
def texture() -> Callable[[Any, Any], Any]:
    """A smooth random function of map position [m]: an exact image at any place."""
    rng = np.random.default_rng(5)
    wave = rng.uniform(0.004, 0.1, (60, 2)) * rng.choice([-1, 1], (60, 2))
    phase, size = rng.uniform(0, 2 * np.pi, 60), rng.uniform(0.3, 1, 60)

    def value(y: Any, x: Any) -> Any:
        return 0.3 + 0.01 * sum(s * np.cos(w[0] * y + w[1] * x + p) for w, p, s in zip(wave, phase, size, strict=True))

    return value


@pytest.fixture
def moving(texture: Callable[[Any, Any], Any]) -> Callable[..., tuple[xr.Dataset, FakeReader]]:
    """A cube in which everything moves at (vy, vx) m/day; returns it with the reader that counts."""

    def make(
        dates: tuple[str, ...] = ("2021-07-01", "2021-07-11", "2021-07-21"), vy: float = 2.0, vx: float = -3.0,
        grid: GeoBox = GRID, holes: bool = False, **options: Any,
    ) -> tuple[xr.Dataset, FakeReader]:  # fmt: skip
        items = [make_item(k, d, grid) for k, d in enumerate(dates)]
        days = {i.id: (pd.Timestamp(d) - pd.Timestamp(dates[0])).days for i, d in zip(items, dates, strict=True)}

        def pixels(scene: str, y: Any, x: Any) -> Any:
            # DN = reflectance * 10000, so that the cube's scale brings the texture back.
            dn = 10000 * texture(y - vy * days[scene], x - vx * days[scene])
            if holes:
                dn = np.where(np.hypot(y - 5098800, x - 601200 - 60 * days[scene]) < 150, np.nan, dn)
            return dn

        reader = FakeReader(pixels)
        return og.open_cube(items, "nir", loader=reader, **options), reader

    return make
