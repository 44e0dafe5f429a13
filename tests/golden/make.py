"""Write the golden stores of the current schema: `python tests/golden/make.py`, once for each schema, never again.

A zip file holds two stores with their ledgers and, beside them, the values that went into them, as plain NumPy arrays.
What is committed stays as it is: `tests/test_golden.py` opens it with every later ogive.
"""

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pystac
from affine import Affine
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import grid
from ogive.testing.readers import FakeReader
from ogive.testing.runs import READER

GRID = GeoBox((80, 96), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
DATES = [f"{day:%Y-%m-%d}" for day in pd.date_range("2021-07-01", periods=14, freq="5D")]


def item(date: str) -> pystac.Item:
    """A scene whose pixels are those of `ogive.testing.runs`."""
    stamp, extent = pd.Timestamp(date, tz="UTC"), GRID.geographic_extent
    found = pystac.Item(
        f"S2A_32TPS_{stamp:%Y%m%d}_0_L2A", extent.json, list(extent.boundingbox), stamp.to_pydatetime(),
        {"platform": "sentinel-2a", "constellation": "sentinel-2", "sat:relative_orbit": 22, "eo:cloud_cover": 5.0,
         "view:sun_azimuth": 150.0, "view:sun_elevation": 50.0, "proj:code": f"EPSG:{GRID.crs.epsg}",
         "s2:processing_baseline": "03.01"},
        collection="sentinel-2-l2a",
    )  # fmt: skip
    fields = {"proj:shape": list(GRID.shape), "proj:transform": list(GRID.affine)[:6]}
    found.add_asset("nir", pystac.Asset(f"{found.id}_nir.tif", extra_fields=fields))
    return found


def main() -> None:
    """Both stores, computed once and written from memory, so that the arrays beside them are what was asked for."""
    target = Path(__file__).with_name(f"schema-{grid.SCHEMA_VERSION}.zip")
    if target.exists():
        raise SystemExit(f"{target} stays as it is")
    cube = og.open_cube([item(date) for date in DATES], "nir", loader=FakeReader(READER.pixels))
    kernel = og.NCC(chip=16, search=10, step=8)
    velocity = og.track(cube, og.make_pairs(cube, days=(5, 16)), kernel, tile=8, batch=20)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        og.write(velocity, folder / "velocity.zarr", progress=False)
        series = og.invert(og.open_velocity(folder / "velocity.zarr"), every="30D")
        og.write(series, folder / "series.zarr", progress=False)
        for kind, lazy in (("velocity", velocity), ("series", series)):
            values = {str(k): v.values for k, v in lazy.compute().variables.items() if v.dtype.kind != "O"}
            np.savez_compressed(folder / f"{kind}.npz", **values)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.write(path, path.relative_to(folder))


if __name__ == "__main__":
    main()
