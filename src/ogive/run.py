"""A whole job from one file: `run.yaml` in, velocity cube, time series and report out.

Only the public functions of the package are called here, in the order in which a notebook would call them; whoever
needs something else copies these lines. The run file is data: it names no code, and every field has a line of help
that `ogive init` writes into the template.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pystac
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from . import correct, filters, masks, store, summary
from ._trust import plain_yaml, understood, without_secrets
from .cluster import connect
from .cube import open_cube, usable_share
from .errors import PairError, ParameterError, SearchError
from .explain import explain
from .invert import invert
from .kernels import KERNELS, Kernel
from .pairs import PairRules, make_pairs
from .search import search
from .track import track

log = logging.getLogger("ogive")

MATCHES, VELOCITY, SERIES = "matches.zarr", "velocity.zarr", "series.zarr"
"""The stores in a run's folder."""


class Section(BaseModel):
    """A section of the run file: fields that are checked, and can be given no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SearchSection(Section):
    """Which scenes."""

    source: str = Field(
        "earth-search", description="name in catalogs/stac.yaml, STAC API URL, catalogue, items.json or parquet"
    )
    aoi: Any = Field(
        None, description="RGI id, [west, south, east, north], GeoJSON or a vector file; empty: everything"
    )
    datetime: str | None = Field(None, description="2021-06/2022-10")
    sensor: str | None = Field(None, description="sentinel-2 or landsat; empty: both")
    max_cloud: float | None = Field(None, description="most cloud of a scene [percent]")
    limit: int | None = Field(None, description="most scenes")
    outlines: str | None = Field(None, description="vector file of RGI outlines, to look up an RGI id")
    files: str | None = Field(None, description="folder of the images that an items.json names; empty: its own")
    leave_out: list[str] = Field(default_factory=list, description="ids of scenes that are not to be used")


class CubeSection(Section):
    """Images on one grid."""

    band: str | list[str] | dict[str, str] | None = Field(
        None, description="nir, pan, several as [red, nir], or one per sensor; empty: each sensor's own"
    )
    resolution: float | None = Field(None, description="pixel size [m]; empty: the finest native one")
    buffer: float = Field(1000.0, description="margin around the AOI [m], for stable ground")
    loader: str = Field("odc", description="odc or stackstac")
    resampling: str = Field("cubic", description="for scenes that do not lie on the grid")
    sign: str | None = Field(None, description="signer of catalogs/stac.yaml, or none; empty: that of the source")


class StableSection(Section):
    """Ground that does not move; without ice and rock no correction is made."""

    ice: str | None = Field(None, description="vector file of ice outlines")
    rock: str | None = Field(None, description="vector file of stable ground, instead of everything off the ice")
    water: str | None = Field(None, description="vector file of lakes and sea")
    crs: str | None = Field(None, description="coordinate system of files that name none")
    buffer: float = Field(320.0, description="distance kept from the ice [m]")
    dem: str | None = Field(None, description="raster of elevations [m]; ground steeper than max_slope is not stable")
    max_slope: float = Field(30.0, description="steepest ground that counts as stable [degrees]")


class InvertSection(Section):
    """The time series; leave the section out for a single pair."""

    method: str = Field("adaptive", description="adaptive, annual or ticoi")
    every: str | None = Field(None, description="window as a pandas offset; default: that of the method")


class RunConfig(Section):
    """Everything that a run needs; the fields of `run.yaml`."""

    title: str = Field("Glacier velocity", description="heading of the report")
    output: str = Field("velocity", description="folder for stores and report")
    search: SearchSection = SearchSection()
    cube: CubeSection = CubeSection()
    pairs: dict[str, Any] = Field(default_factory=dict, description="see ogive.PairRules")
    kernel: dict[str, Any] = Field(
        default_factory=lambda: {"name": "ncc"}, description="name and parameters, see ogive.NCC, or the name alone"
    )
    stack: str | None = Field(
        None,
        description="ensemble correlation: average pairs of like spans within this time, 30D; empty: single pairs",
    )
    unreadable: str = Field("flag", description="flag or fail: blocks whose scenes can never be read")
    stable: StableSection = StableSection()
    filters: dict[str, dict[str, Any]] = Field(default={"local_median": {}}, description="in this order")
    invert: InvertSection | None = InvertSection()
    points: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="name: [x, y], for the series plot"
    )
    profile: list[tuple[float, float]] = Field(default_factory=list, description="line of [x, y] for a speed profile")
    background: str | None = Field(None, description="raster under the map: an image, a hillshade, a DEM")
    cluster: str | None = Field(None, description="scheduler address, local or gateway; empty: threads of this process")
    workers: int | None = Field(None, description="threads or workers; empty: one per core")

    @field_validator("kernel", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    def make_kernel(self) -> Kernel:
        """The kernel with its parameters.

        Raises
        ------
        ParameterError
            Unknown kernel or parameter, or a value out of range.
        """
        parameters = dict(self.kernel)
        name = parameters.pop("name", "ncc")
        if not isinstance(name, str) or name not in KERNELS:
            raise ParameterError("kernel.name", rule=f"must be one of {', '.join(KERNELS)}", value=repr(name))
        known = [f.name for f in fields(KERNELS[name])]  # type: ignore[arg-type]
        unknown = [key for key in parameters if key not in known]
        if unknown:
            raise ParameterError("kernel", rule=f"has the parameters {', '.join(known)}", value=repr(unknown[0]))
        with understood("kernel", ParameterError):
            return KERNELS[name](**parameters)


@dataclass(frozen=True)
class RunResult:
    """Where the results are, and the figures of the report.

    Parameters
    ----------
    matches : Path
        The raw matches; kept, so that corrections and filters never need the images again.
    velocity : Path
        The velocity cube: corrected for stable ground and filtered.
    series : Path or None
        The regular time series.
    report : Path
    tables : dict of DataFrame
    """

    matches: Path
    velocity: Path
    series: Path | None
    report: Path
    tables: dict[str, pd.DataFrame]

    def to_json(self) -> str:
        """For machines."""
        return json.dumps(
            {
                "matches": str(self.matches),
                "velocity": str(self.velocity),
                "series": None if self.series is None else str(self.series),
                "report": str(self.report),
                "tables": {
                    name: json.loads(t.to_json(orient="records", date_format="iso")) for name, t in self.tables.items()
                },
            }
        )


def load(path: str | Path) -> RunConfig:
    """Read and check a run file; relative paths in it are taken from its own folder.

    Raises
    ------
    ParameterError
        The file is missing or no YAML, or a field is unknown or wrong; names each field.
    """
    path = Path(path)
    try:
        content = plain_yaml(path.read_text()) or {}
    except (OSError, ValueError) as error:
        raise ParameterError(
            str(path), rule="must be a readable YAML file", value=str(error), fix="ogive init run.yaml"
        ) from None
    if not isinstance(content, dict):
        raise ParameterError(
            str(path), rule="must hold named sections", value=type(content).__name__, fix="ogive init run.yaml"
        )
    folder = path.resolve().parent
    for section, keys in _PATHS.items():
        part = content if not section else content.get(section) or {}
        for key in keys:
            value = part.get(key) if isinstance(part, dict) else None
            if isinstance(value, str) and (key == "output" or _exists(folder / value)):
                part[key] = str(folder / value)
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ParameterError(
            str(path), rule="has a field that is unknown or wrong", value=found, fix="compare with ogive init"
        ) from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a name may be, or not one at all
        return False


_PATHS: dict[str, tuple[str, ...]] = {
    "": ("output", "background"),
    "search": ("source", "aoi", "outlines", "files"),
    "kernel": ("weights",),
    "stable": ("ice", "rock", "water", "dem"),
}


def prepare(
    config: RunConfig, *, check: bool = True, items: pystac.ItemCollection | None = None, kernel: Any = None
) -> tuple[xr.Dataset, xr.Dataset]:
    """Search, cube, pairs and the lazy velocity of a run.

    Parameters
    ----------
    config : RunConfig
    check : bool
        Look at every scene coarsely first, leave out those without a usable pixel, and refuse to start if too few are
        left. This is the only step that reads pixels.
    items : pystac.ItemCollection, optional
        What `find` gave, if that was called before.
    kernel : Kernel or callable, optional
        Instead of the one that the run file names; a user's own, for example, because a run file names no code.

    Returns
    -------
    cube, velocity : xr.Dataset
        Both lazy.

    Raises
    ------
    OgiveError
        Whatever keeps the run from starting; nothing has been written then.
    """
    matcher = config.make_kernel() if kernel is None else kernel
    query, part = config.search, config.cube
    items = find(config) if items is None else items
    area = None if query.aoi is None else _area(query.aoi, query.outlines)
    # An AOI needs room around it for stable ground; without one the scenes' common area has that already.
    cube = open_cube(
        items, part.band, resolution=part.resolution, aoi=area, buffer=part.buffer if area is not None else 0.0,
        loader=part.loader, resampling=part.resampling, sign=part.sign,
    )  # fmt: skip
    if check:
        share = usable_share(items, cube, part.band, sign=part.sign)
        if (share > 0).sum() < 2:
            raise PairError(
                "scenes", rule="at least two must have usable pixels in the area", value=share.round(3).to_dict(),
                fix="widen the dates, or look at the masks",
            )  # fmt: skip
        cube = without_empty(cube, share)
    pairs = make_pairs(cube, pair_rules(config.pairs))
    velocity = track(cube, pairs, matcher, stack=config.stack, unreadable=config.unreadable)
    # What follows the matching is tried on the lazy cube: a wrong filter or mask must not show up hours later.
    stable_mask(config, velocity)
    filtered = apply_filters(config, velocity)
    if config.invert is not None:
        invert(filtered, method=config.invert.method, every=config.invert.every)
    return cube, velocity


def find(config: RunConfig) -> pystac.ItemCollection:
    """The scenes of a run.

    Raises
    ------
    OgiveError
        See `search`; or all scenes are to be left out.
    """
    query = config.search
    found = search(
        query.aoi, query.datetime, sensor=query.sensor, max_cloud=query.max_cloud, source=query.source,
        limit=query.limit, outlines=query.outlines, files=query.files,
    )  # fmt: skip
    kept = [item for item in found if item.id not in set(query.leave_out)]
    if not kept:
        raise SearchError("search.leave_out", rule="leaves no scene", value=f"{len(found)} found", fix="shorten it")
    return pystac.ItemCollection(kept, clone_items=False)


def without_empty(cube: xr.Dataset, share: pd.Series) -> xr.Dataset:
    """The cube without the scenes whose share of usable pixels is 0, which the log names.

    Scenes that cannot be read (NaN) stay, so that each of their vectors gets its reason.
    """
    empty = share.index[share == 0]
    if len(empty):
        text = "%d of %d scenes have no usable pixel here and are left out: %s"
        log.warning(text, len(empty), len(share), ", ".join(empty))
    return cube.isel(time=[i for i, s in enumerate(cube["scene_id"].values) if s not in set(empty)])


def run(
    config: RunConfig, *, client: Any = None, progress: bool = True, kernel: Any = None,
    watch: Callable[[str, dict[str, Any] | None], None] | None = None,
) -> RunResult:  # fmt: skip
    """Do the whole job; run it again after an interruption and it goes on where it was.

    Parameters
    ----------
    config : RunConfig
    client : distributed.Client, optional
        Default: what `config.cluster` says.
    progress : bool
        Show progress bars on the terminal.
    kernel
        As in `prepare`.
    watch : callable, optional
        As in `ogive.write`, with the path of the store as its first argument.

    Raises
    ------
    OgiveError
        See `prepare` and `ogive.write`.
    """
    output = Path(config.output)
    if not output.parent.is_dir():
        raise ParameterError("output", rule="its parent folder must exist", value=str(output.parent), fix="make it")
    if output.exists() and not output.is_dir():
        raise ParameterError("output", rule="must be a folder", value=str(output), fix="choose another name")
    _, matches = prepare(config, kernel=kernel)
    output.mkdir(exist_ok=True)
    if client is None and config.cluster:
        client = connect(config.cluster, workers=config.workers)
    log.info("%s", explain(matches, client, workers=config.workers))
    how = {"client": client, "progress": progress, "workers": config.workers}

    def put(velocity: xr.Dataset, name: str, **options: Any) -> None:
        seen = None if watch is None else partial(watch, str(output / name))
        store.write(velocity, output / name, watch=seen, **how, **options)

    try:
        put(matches, MATCHES)
    finally:
        if not any(output.iterdir()):
            output.rmdir()
    if lost := store.status(output / MATCHES).get("unreadable"):
        log.warning("%d scenes can never be read, their pairs are flagged: ogive status %s", lost, output / MATCHES)
    # The source may be an address with a password; the report needs none of it.
    (output / "run.json").write_text(without_secrets(config.model_dump_json(indent=2)))
    # Cheap next to matching: made anew whenever a mask, a filter or the inversion changes.
    velocity = correct_and_filter(config, store.open_velocity(output / MATCHES))
    put(velocity, VELOCITY, overwrite=True)
    if config.invert is not None:
        series = invert(store.open_velocity(output / VELOCITY), method=config.invert.method, every=config.invert.every)
        put(series, SERIES, overwrite=True)
    return report(output)


def report(output: str | Path, *, extra: dict[str, pd.DataFrame] | None = None) -> RunResult:
    """Write the report of a finished run anew.

    Parameters
    ----------
    output : path
        Folder of the run.
    extra : dict of DataFrame, optional
        Tables to put first, a comparison with a known truth for instance.

    Raises
    ------
    StoreError
        The run is not finished.
    ParameterError
        The folder holds no run.
    """
    output = Path(output)
    try:
        config = RunConfig.model_validate_json((output / "run.json").read_text())
    except FileNotFoundError:
        raise ParameterError(str(output), rule="holds no run", fix="ogive run run.yaml") from None
    raw, velocity = (store.open_velocity(output / name) for name in (MATCHES, VELOCITY))
    # A series of an earlier run, before the section was taken out, is not part of this one.
    wanted = config.invert is not None and (output / SERIES).exists()
    series = store.open_velocity(output / SERIES) if wanted else None
    found = {**(extra or {}), **summary.tables(raw, velocity, stable_mask(config, raw), ice_mask(config, raw))}
    path = summary.write(output, config, raw, velocity, series, found)
    return RunResult(output / MATCHES, output / VELOCITY, output / SERIES if series is not None else None, path, found)


def correct_and_filter(config: RunConfig, velocity: xr.Dataset) -> xr.Dataset:
    """Stable-ground correction, if there is stable ground, then the filters in their order; lazy.

    Raises
    ------
    MaskError
        See `masks.stable`.
    ParameterError
        See `apply_filters`.
    """
    mask = stable_mask(config, velocity)
    return apply_filters(config, velocity if mask is None else correct.stable_ground(velocity, mask))


def apply_filters(config: RunConfig, velocity: xr.Dataset) -> xr.Dataset:
    """The filters of a run in their order; lazy.

    Raises
    ------
    ParameterError
        A filter that does not exist, a parameter that it does not have, or a value out of range.
    """
    for name, parameters in config.filters.items():
        if name not in summary.FILTERS:
            raise ParameterError("filters", rule=f"are {', '.join(summary.FILTERS)}", value=repr(name))
        with understood(f"filter {name}", ParameterError):
            velocity = getattr(filters, name)(velocity, **parameters)
    return velocity


def stable_mask(config: RunConfig, grid: xr.Dataset) -> xr.DataArray | None:
    """Stable ground on the velocity's grid, or None where the run names none."""
    part = config.stable
    if part.ice is None and part.rock is None:
        return None
    return masks.stable(
        grid, ice=part.ice, rock=part.rock, water=part.water, crs=part.crs, buffer=part.buffer, dem=part.dem,
        max_slope=part.max_slope,
    )  # fmt: skip


def ice_mask(config: RunConfig, grid: xr.Dataset) -> xr.DataArray | None:
    """Ice on the velocity's grid: the outlines, or without them everything that is not rock."""
    part = config.stable
    if part.ice is not None:
        return masks.ice(part.ice, grid, crs=part.crs)
    return None if part.rock is None else ~masks.outlines(part.rock, grid, crs=part.crs)


def pair_rules(given: dict[str, Any]) -> PairRules:
    """The section `pairs` of a run file.

    Raises
    ------
    ParameterError
        A rule that does not exist, or a value out of range.
    """
    known = asdict(PairRules())
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ParameterError("pairs", rule=f"has the fields {', '.join(known)}", value=unknown)
    with understood("pairs", ParameterError):
        return PairRules(**{k: _tuples(v) for k, v in given.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _area(aoi: Any, outlines: str | None) -> Any:
    from .aoi import resolve_aoi

    return resolve_aoi(aoi, outlines)
