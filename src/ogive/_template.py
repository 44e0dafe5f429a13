"""What a store looks like before its first block: variables, codecs, fill values, coordinates.

Chunks carry checksums, every variable has an explicit fill value (NaN; `flag` reads NOT_COMPUTED), a Zarr shard is
exactly one block, times have fixed units. The metadata of all variables is in the root object as well: readers need one
request for it, and a store changes from one state to the next in one step.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from . import flags
from ._ledger import COMPLETE, ROOT, STATUS, WRITING
from .grid import SCHEMA_VERSION

FILL: dict[str, Any] = {"flag": np.uint16(flags.NOT_COMPUTED), "interp_mask": np.uint8(255)}
"""Fill values that are not NaN (floats) or 0 (sizes and counts, which are never 0 where measured)."""
_INNER = 32
"""Cells along the inner chunks: a reader of one time series decodes 32 x 32 cells, not a whole block."""
GROWING = {"mid_date": 16384}
"""The dimension that `append` extends, and the chunk length of what is not lazy there, for any number of pairs."""


def template(ds: xr.Dataset) -> dict[str, bytes]:
    """All objects of a store but those of its blocks; the root says that the store is complete.

    Parameters
    ----------
    ds : xr.Dataset
        Lazy variables are those of the blocks.
    """
    # Texts of any length: a fixed width would have to grow with the first longer name.
    plain = ds.assign({name: v.astype(object) for name, v in ds.variables.items() if v.dtype.kind == "U"})
    for variable in plain.variables.values():
        variable.encoding = {}
    kind = "series" if "time" in ds.dims else "velocity"
    plain.attrs = {"kind": kind, **ds.attrs, "schema_version": SCHEMA_VERSION, STATUS: COMPLETE}
    by_map = ds.attrs.get("kind") == "overview"
    encoding = {str(name): _encoding(str(name), v, by_map) for name, v in plain.variables.items()}
    held: dict[str, Any] = {}
    with warnings.catch_warnings():
        # Consolidated metadata are an extension of Zarr 3 that its readers know and its text does not yet.
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
        plain.to_zarr(MemoryStore(held), mode="w-", encoding=encoding, compute=False, consolidated=True)
    return {key: buffer.to_bytes() for key, buffer in held.items()}


def being_written(root: bytes) -> bytes:
    """The root object of a store that is not complete."""
    document = json.loads(root)
    document["attributes"][STATUS] = WRITING
    return json.dumps(document, indent=2).encode()


def encoded(metadata: dict[str, Any], values: Mapping[str, Any], spans: Mapping[str, list[int]]) -> dict[str, bytes]:
    """The objects of a block.

    Parameters
    ----------
    metadata : dict
        The root object of the store.
    values : mapping of str to arrays
        By variable.
    spans : mapping of str to (start, stop)
        Where the block lies along each dimension.
    """
    held = in_memory({ROOT: json.dumps(metadata).encode()})
    for name, (array, region) in _blocks(held, values, spans).items():
        # A block without a single match is written too: "no match" must not look like "not done".
        array.with_config({"write_empty_chunks": True})[region] = np.ascontiguousarray(values[name], array.dtype)
    del held[ROOT]
    return {key: buffer.to_bytes() for key, buffer in held.items()}


def decoded(
    metadata: dict[str, Any], objects: Mapping[str, bytes], spans: Mapping[str, list[int]]
) -> dict[str, NDArray[Any]]:
    """The values in the objects of a block, by variable: `encoded` backwards, or a part of it."""
    held = in_memory({ROOT: json.dumps(metadata).encode(), **objects})
    blocks = _blocks(held, sorted({key.split("/")[0] for key in objects}), spans)
    return {name: np.asarray(array[region]) for name, (array, region) in blocks.items()}


def in_memory(objects: Mapping[str, bytes]) -> dict[str, Any]:
    """Objects as zarr's store in memory takes them."""
    return {key: default_buffer_prototype().buffer.from_bytes(data) for key, data in objects.items()}


def _blocks(
    held: dict[str, Any], names: Iterable[str], spans: Mapping[str, list[int]]
) -> dict[str, tuple[Any, tuple[slice, ...]]]:
    """Arrays of a store in memory, and where a block lies in each."""
    group: Any = zarr.open_group(MemoryStore(held), mode="r+", use_consolidated=True)
    arrays = {name: group[name] for name in names}
    return {
        name: (array, tuple(slice(*spans[str(dim)]) for dim in array.metadata.dimension_names))
        for name, array in arrays.items()
    }


def _encoding(name: str, variable: xr.Variable, by_map: bool = False) -> dict[str, Any]:
    """How a variable is stored; `by_map`: its inner chunks are maps of one time, not series of a few cells."""
    spec: dict[str, Any] = {"compressors": [ZstdCodec(level=3, checksum=True)]}
    if np.issubdtype(variable.dtype, np.datetime64):
        spec |= {"units": "microseconds since 1970-01-01", "dtype": "int64", "calendar": "proleptic_gregorian"}
    elif name in ("y", "x"):
        spec["_FillValue"] = None
    elif variable.dtype != object:
        spec["fill_value"] = _fill(name, variable.dtype)
        if np.issubdtype(variable.dtype, np.floating):
            spec["_FillValue"] = spec["fill_value"]
    if variable.chunks is None:
        chunks = tuple(GROWING.get(str(d), n) for d, n in variable.sizes.items())
        return spec | ({"chunks": chunks} if chunks else {})
    shard = tuple(c[0] for c in variable.data.chunks)
    sizes = list(zip(variable.dims, shard, strict=True))
    if by_map:
        inner = tuple(s if d in ("y", "x") else 1 for d, s in sizes)
    else:
        inner = tuple(s if d not in ("y", "x") or s % _INNER else _INNER for d, s in sizes)
    return spec | {"chunks": inner} | ({"shards": shard} if inner != shard else {})


def _fill(name: str, dtype: np.dtype[Any]) -> Any:
    if name in FILL:
        return FILL[name]
    return dtype.type(np.nan) if np.issubdtype(dtype, np.floating) else dtype.type(0)
