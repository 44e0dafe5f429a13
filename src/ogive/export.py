"""Copies for other tools: GeoTIFF, netCDF, point tables, the ITS_LIVE datacube layout, cubes for TICOI.

Every writer writes under a temporary name beside the target and renames at the end, so a failed or interrupted
export leaves nothing that looks finished, and what was there before stays until the new file is complete. Cubes pass
through block by block. Paths are local; copy the result to an object store with the tools of the store.
"""

import contextlib
import importlib.util
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyproj
import rasterio
import xarray as xr
from numpy.typing import NDArray

from . import _itslive, _ticoi_layout, flags, grid
from .errors import ParameterError, StoreError

_EPOCH = "days since 1970-01-01"
_DATES = ("mid_date", "acquisition_date_img1", "acquisition_date_img2", "date_center")


@contextlib.contextmanager
def replacing(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; put it in place at the end, or remove it if the block fails.

    Raises
    ------
    StoreError
        `path` exists and `overwrite` is False, or its folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise StoreError(f"{target}", rule="its folder must exist", fix=f"create {target.parent}")
    if target.exists() and not overwrite:
        raise StoreError(f"{target}", rule="must not exist yet", fix="choose another path or pass overwrite=True")
    part = target.with_name(f".{target.stem}-{os.getpid()}.part{target.suffix}")
    try:
        yield part
        if target.is_dir():  # a folder cannot be renamed over another one
            old = part.with_name(part.name + ".old")
            target.rename(old)
            part.rename(target)
            shutil.rmtree(old)
        else:
            part.replace(target)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def time_dimension(dataset: xr.Dataset) -> str | None:
    """`mid_date` of a velocity, `time` of a series, None for a single map."""
    return next((str(d) for d in ("mid_date", "time") if d in dataset.dims), None)


def median_valid(values: NDArray[Any]) -> NDArray[Any]:
    """Median along the last axis of the values that are not NaN; NaN where there is none.

    Examples
    --------
    >>> median_valid(np.array([[3.0, np.nan, 1.0], [np.nan, np.nan, np.nan]])).tolist()
    [2.0, nan]
    """
    ordered = np.sort(values, axis=-1)  # NaN last
    count = np.isfinite(ordered).sum(-1, keepdims=True)
    low, high = np.maximum((count - 1) // 2, 0), np.minimum(count // 2, ordered.shape[-1] - 1)
    middle = (np.take_along_axis(ordered, low, -1) + np.take_along_axis(ordered, high, -1)) / 2
    return np.where(count > 0, middle, np.nan)[..., 0]


def map_at(dataset: xr.Dataset, names: Sequence[str], *, when: int | None = None) -> xr.Dataset:
    """Single maps of a velocity or a series, in memory: one position in time, or the median.

    Speed is the norm of the components, and of their medians if `when` is None: the median or mean of magnitudes is
    biased high by noise. Values with an invalid flag are NaN.

    Parameters
    ----------
    dataset : xr.Dataset
        velocity, series or a single map with `vx` and `vy`.
    names : sequence of str
        Variables on (y, x) or (time, y, x).
    when : int, optional
        Position on the time dimension (negative: from the end); None: median over time.

    Returns
    -------
    xr.Dataset
        dims (y, x), float32, y descending.

    Raises
    ------
    ParameterError
        An unknown variable, one that is not a map, a position out of range, the median of flags.
    """
    time = time_dimension(dataset)
    size = dataset.sizes[time] if time else 1
    if when is not None and not -size <= when < size:
        raise ParameterError("when", rule=f"must be a position in -{size} ... {size - 1}", value=when)
    if size < 1:
        raise ParameterError("dataset", rule="needs at least one time", value=dict(dataset.sizes))
    if time and when is not None:
        dataset, time = dataset.isel({time: when}), None
    parts: dict[str, xr.DataArray] = {}
    for name in dict.fromkeys(names):
        sources = ("vx", "vy") if name == "v" and "vx" in dataset else (name,)
        parts |= {source: _one_map(dataset, source, time) for source in sources if source not in parts}
        if name == "v" and "vx" in dataset:
            parts["v"] = cast("xr.DataArray", np.hypot(parts["vx"], parts["vy"]))
            parts["v"].attrs = {"units": "meter/year", "long_name": "speed"}
    out = xr.Dataset(parts).compute()[list(dict.fromkeys(names))].astype(np.float32)
    if out.sizes["y"] > 1 and out["y"][0] < out["y"][-1]:
        out = out.isel(y=slice(None, None, -1))
    geobox = grid.geobox_of(dataset if "y" in dataset.coords else out)
    if geobox.affine.e > 0:
        geobox = geobox.flipy()
    return out.drop_vars([c for c in out.coords if c not in ("y", "x")]).assign_coords(mapping=grid.mapping(geobox))


def _one_map(dataset: xr.Dataset, name: str, time: str | None) -> xr.DataArray:
    if name not in dataset or not {"y", "x"} <= set(dataset[name].dims):
        maps = [str(n) for n in dataset.data_vars if {"y", "x"} <= set(dataset[n].dims)]
        raise ParameterError(f"variable {name!r}", rule="must be a map (y, x) of the dataset", fix=f"choose of {maps}")
    values = dataset[name]
    if "flag" in dataset and name != "flag" and dataset["flag"].dims == values.dims:
        values = values.where(~flags.invalid(dataset["flag"]))
    if time is None or time not in values.dims:
        return values
    if name == "flag":
        raise ParameterError("when", rule="flags have no median", fix="pick one position with when=0")
    if values.chunks is not None:
        values = values.chunk({time: -1})
    median = xr.apply_ufunc(
        median_valid, values, input_core_dims=[[time]], dask="parallelized", output_dtypes=[np.float32]
    )
    return cast("xr.DataArray", median.assign_attrs(values.attrs))


def to_geotiff(
    dataset: xr.Dataset,
    path: str | Path,
    *,
    variable: str | Sequence[str] = "v",
    when: int | None = None,
    cog: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write maps as a (cloud-optimised) GeoTIFF, one float32 band for each variable, NaN = no data.

    Parameters
    ----------
    dataset : xr.Dataset
        velocity or series.
    path : path
        Target file.
    variable : str or sequence of str
        Names of maps; several become bands with descriptions.
    when : int, optional
        Position in time; None: median over time, component by component.
    cog : bool
        Cloud-optimised, with overviews; False: tiled GeoTIFF.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    Path

    Raises
    ------
    StoreError
        The file exists, or its folder does not.
    ParameterError
        See `map_at`.
    """
    names = [variable] if isinstance(variable, str) else list(variable)
    with replacing(path, overwrite=overwrite) as part:
        maps = map_at(dataset, names, when=when)
        geobox = grid.geobox_of(maps)
        layout: dict[str, Any] = {"driver": "COG"} if cog else {"driver": "GTiff", "tiled": True}
        layout |= {"blocksize": 512} if cog else {"blockxsize": 256, "blockysize": 256}
        if cog:
            layout["overview_resampling"] = "average"
        with rasterio.open(
            part,
            "w",
            height=geobox.shape.y,
            width=geobox.shape.x,
            count=len(names),
            dtype="float32",
            nodata=float("nan"),
            crs=rasterio.CRS.from_user_input(str(geobox.crs)),
            transform=geobox.affine,
            compress="deflate",
            predictor=3,
            **layout,
        ) as out:
            kept = ("title", "institution", "provenance", "schema_version", "year_length_days")
            tags = {k: str(dataset.attrs[k]) for k in kept if k in dataset.attrs}
            out.update_tags(**tags, composite="median over time" if when is None else f"position {when}")
            for band, name in enumerate(names, 1):
                out.write(maps[name].values, band)
                out.set_band_description(band, name)
                units = dataset[name].attrs.get("units") if name in dataset else None
                out.set_band_unit(band, str(units or ("meter/year" if name.startswith("v") else "")))
    return Path(path)


def to_netcdf(dataset: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a velocity or a series as CF netCDF-4, block by block.

    float variables: `_FillValue` NaN; chip sizes: 0; flags: no fill, because every value is a statement. Dates are
    float64 days since 1970-01-01 (exact to a microsecond); `time_bnds` follows its time axis.

    Parameters
    ----------
    dataset : xr.Dataset
        velocity or series, lazy or in memory.
    path : path
        Target file.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    StoreError
        The file exists, its folder does not, or h5netcdf and h5py are not installed.
    GridError
        The dataset has no coordinate system.
    """
    _assert_netcdf()
    geobox = grid.geobox_of(dataset)
    out = dataset.drop_vars("spatial_ref", errors="ignore").drop_encoding()
    out = out.assign_coords({"mapping": grid.mapping(geobox), **grid.coordinates(geobox)})
    out.attrs = {"Conventions": "CF-1.8", **_plain(dataset.attrs)}
    encoding: dict[str, dict[str, Any]] = {}
    for name in map(str, out.variables):
        variable = out[name]
        variable.attrs = _plain({k: v for k, v in variable.attrs.items() if k not in ("grid_mapping", "coordinates")})
        code: dict[str, Any] = {"_FillValue": None}
        if variable.dtype.kind == "M":
            code |= {"dtype": "float64", "units": _EPOCH, "calendar": "proleptic_gregorian"}
        elif variable.dtype.kind == "f" and name not in ("x", "y"):
            code["_FillValue"] = np.array(np.nan, variable.dtype)[()]
        elif name.startswith("chip_size"):
            code["_FillValue"] = np.uint16(0)
        if {"y", "x"} <= set(variable.dims):
            code |= {"grid_mapping": "mapping", "zlib": True, "complevel": 4, "shuffle": True}
            code["chunksizes"] = tuple(min(n, 512) if d in ("y", "x") else 1 for d, n in variable.sizes.items())
        encoding[name] = code
    if "time_bnds" in out:
        out["time"].attrs["bounds"] = "time_bnds"
        encoding.pop("time_bnds")  # CF: the bounds take units and calendar of their axis
    with replacing(path, overwrite=overwrite) as part:
        out.to_netcdf(part, engine="h5netcdf", format="NETCDF4", encoding=encoding)
    return Path(path)


def to_itslive(velocity: xr.Dataset, path: str | Path, *, author: str = "ogive", overwrite: bool = False) -> Path:
    """Write a velocity as a Zarr version 2 store in the layout of the ITS_LIVE datacubes.

    int16 velocities in steps of 1 m/yr, chunks (pairs, 10, 10), consolidated metadata; speeds that int16 cannot hold
    (above 32 766 m/yr) become missing. Readers of ITS_LIVE cubes, GDAL's Zarr driver among them, open it as it is.

    Parameters
    ----------
    velocity : xr.Dataset
        dims (mid_date, y, x).
    path : path
        Target folder, by custom `*.zarr`.
    author : str
        Global attribute. Some readers (TICOI) recognise an ITS_LIVE cube only by the author string of ITS_LIVE; set
        it for such a reader if you must, but do not pass the copy on under their name.
    overwrite : bool
        Replace an existing store.

    Raises
    ------
    StoreError
        The store exists, or its folder does not.
    ParameterError
        No pairs, a missing variable, or a sensor code that does not fit.
    """
    out, encoding = _itslive.layout(velocity, author)
    with replacing(path, overwrite=overwrite) as part:
        _write_zarr(out, encoding, part)
    return Path(path)


def to_ticoi(dataset: xr.Dataset, path: str | Path, *, author: str = "ogive", overwrite: bool = False) -> Path:
    """Write a velocity or a series so that the generic loader of TICOI opens it: netCDF (`.nc`) or Zarr (`.zarr`).

    Dimensions (mid_date, y, x): `vx`, `vy` float32 [meter/year], `date1`, `date2`, `errorx`, `errory`, `sensor` (`S2A`,
    `L8`), `source`; attribute `proj4`. That loader deletes values with a component of exactly 0; such components are
    written as 0.001 m/yr. A series is given as its windows: `date1` and `date2` are their edges.

    Parameters
    ----------
    dataset : xr.Dataset
        velocity or series.
    path : path
        Target; the suffix decides.
    author : str
        Global attribute. The names of some authors make TICOI choose another loader.
    overwrite : bool
        Replace an existing file or store.

    Raises
    ------
    ParameterError
        Another suffix, no pairs, or a missing variable.
    StoreError
        The target exists, its folder does not, or netCDF cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".nc", ".zarr"):
        raise ParameterError("path", rule="must end in .nc or .zarr", value=str(path))
    out, encoding = _ticoi_layout.layout(dataset, author)
    if suffix == ".nc":
        _assert_netcdf()
        for name, code in encoding.items():
            chunks = code.pop("chunks", None)
            if out[name].ndim == 3:
                code |= {"chunksizes": chunks, "zlib": True, "complevel": 4, "shuffle": True}
    with replacing(path, overwrite=overwrite) as part:
        if suffix == ".zarr":
            _write_zarr(out, encoding, part)
        else:
            out.to_netcdf(part, engine="h5netcdf", format="NETCDF4", encoding=encoding)
    return Path(path)


def _write_zarr(out: xr.Dataset, encoding: dict[str, dict[str, Any]], part: Path) -> None:
    """A Zarr version 2 store, block after block of `vx`."""
    cubes = out[[n for n in out.data_vars if out[n].ndim == 3]].drop_vars(["mid_date", "y", "x"])
    out.to_zarr(part, mode="w", zarr_format=2, consolidated=True, encoding=encoding, compute=False)
    # Block after block, because one graph over all of them holds every pair of the whole map at once. Computed
    # before it is written, so that no thread still writes into a store that a failure removes.
    for block in _spans(cubes["vx"]):
        cubes.isel(block).compute().to_zarr(part, region=block, zarr_format=2, consolidated=True)


def _assert_netcdf() -> None:
    absent = [name for name in ("h5netcdf", "h5py") if importlib.util.find_spec(name) is None]
    if absent:
        raise StoreError("netCDF", rule=f"needs {', '.join(absent)}", fix="pip install 'ogive[netcdf]'")


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes that every format can hold."""
    kinds = (str, int, float, np.ndarray, np.number)
    return {str(k): v if isinstance(v, kinds) and not isinstance(v, bool) else str(v) for k, v in attrs.items()}


def locate(dataset: xr.Dataset, points: Mapping[str, tuple[float, float]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows and columns of the cells that hold named points (x, y) [m, map coordinates].

    Raises
    ------
    ParameterError
        No point, or a point outside the grid.
    """
    if not points:
        raise ParameterError("points", rule="needs at least one", fix="pass {'name': (x, y)}")
    geobox = grid.geobox_of(dataset)
    places = []
    for name, (x, y) in points.items():
        column, row = (int(np.floor(v)) for v in ~geobox.affine @ (x, y))
        if not (0 <= row < geobox.shape.y and 0 <= column < geobox.shape.x):
            box = tuple(round(v, 1) for v in geobox.boundingbox.bbox)
            fix = f"use {geobox.crs} coordinates inside left, bottom, right, top = {box}"
            raise ParameterError(f"point {name!r}", rule="must lie on the grid", value=(x, y), fix=fix)
        places.append((row, column))
    rows, columns = np.array(places).T
    return rows, columns


def to_points(
    dataset: xr.Dataset,
    path: str | Path,
    points: Mapping[str, tuple[float, float]] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write velocities as a table: CSV, or Parquet if the suffix is `.parquet`.

    Columns: `name` (named points only); `pair_id`, `acquisition_date_img1`, `acquisition_date_img2`, `mid_date` or
    `time`; `x`, `y` [m]; `lon`, `lat` [degree, WGS 84]; `vx`, `vy`, `v` and their errors [meter/year]; `count`;
    `flag`. Those that the dataset lacks are left out.

    Parameters
    ----------
    dataset : xr.Dataset
        velocity or series.
    path : path
        Target file.
    points : mapping name -> (x, y), optional
        Map coordinates [m]. Each point gives one row for every time, valid or not, from the cell that holds it.
        None: one row for every valid pixel and time, block by block.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    ParameterError
        Another suffix, or a point outside the grid.
    StoreError
        The file exists, or its folder does not.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise ParameterError("path", rule="must end in .csv or .parquet", value=str(path))
    if points is not None:
        rows, columns = locate(dataset, points)
        cells = dataset.isel(y=xr.DataArray(rows, dims="name"), x=xr.DataArray(columns, dims="name"))
        tables: Iterator[pd.DataFrame] = iter(
            [_table(cells.assign_coords(name=list(points)), dataset, everything=True)]
        )
    else:
        tables = (_table(block, dataset, everything=False) for block in _blocks(dataset))
    with replacing(path, overwrite=overwrite) as part:
        if suffix == ".csv":
            for i, table in enumerate(tables):
                table.to_csv(part, mode="a", header=i == 0, index=False, date_format="%Y-%m-%dT%H:%M:%S.%f")
        else:
            _write_parquet(part, tables)
    return Path(path)


def _blocks(dataset: xr.Dataset) -> Iterator[xr.Dataset]:
    """The dataset in the chunks of `vx`, so that each chunk is read once."""
    for span in _spans(dataset["vx"]):
        yield dataset.isel(span)


def _spans(array: xr.DataArray) -> Iterator[dict[str, slice]]:
    """The slices of each chunk; all of it if it has no chunks."""
    chunks = dict(zip(array.dims, array.chunks)) if array.chunks else {d: (n,) for d, n in array.sizes.items()}
    edges = {str(d): np.cumsum((0, *c)).tolist() for d, c in chunks.items()}
    for spans in itertools.product(*(itertools.pairwise(e) for e in edges.values())):
        yield {d: slice(a, b) for d, (a, b) in zip(edges, spans)}


def _table(block: xr.Dataset, whole: xr.Dataset, *, everything: bool) -> pd.DataFrame:
    dates = ("pair_id", *_DATES[1:3], "mid_date", "time")
    values = ("vx", "vy", "v", "vx_error", "vy_error", "v_error", "count", "flag")
    used = [n for n in (*dates, *values) if n in block.variables]
    block = block[used].compute()
    dims = [d for d in ("name", "mid_date", "time", "y", "x") if d in block.dims]
    full = xr.broadcast(*(block[n] for n in used), block["y"], block["x"], *([block["name"]] if "name" in dims else []))
    names = [*used, "y", "x", *(["name"] if "name" in dims else [])]
    columns = {n: a.transpose(*dims).values for n, a in zip(names, full)}  # views; only what is kept is copied
    keep = np.isfinite(columns["vx"]) & np.isfinite(columns["vy"])
    if "flag" in columns:
        keep &= ~flags.invalid(columns["flag"])
    if everything:
        keep[:] = True
    table = pd.DataFrame({n: a[keep] for n, a in columns.items()})
    to_degrees = pyproj.Transformer.from_crs(str(grid.geobox_of(whole).crs), 4326, always_xy=True)
    lon, lat = to_degrees.transform(table["x"].to_numpy(), table["y"].to_numpy())
    table["lon"], table["lat"] = np.round(lon, 7), np.round(lat, 7)
    order = ["name", *dates, "x", "y", "lon", "lat", *values]
    return table[[n for n in order if n in table]]


def _write_parquet(path: Path, tables: Iterator[pd.DataFrame]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise StoreError(
            f"{path.name}", rule="Parquet needs pyarrow", fix="pip install pyarrow, or use .csv"
        ) from error
    first = pa.Table.from_pandas(next(tables), preserve_index=False)
    with pq.ParquetWriter(path, first.schema) as out:
        out.write_table(first)
        for table in tables:
            out.write_table(pa.Table.from_pandas(table, schema=first.schema, preserve_index=False))
