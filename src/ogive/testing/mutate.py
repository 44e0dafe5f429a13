"""What others may hand us, spoiled at random but repeatably: items, run files, catalogues and stores.

A trial changes a valid document in a few places, or its text, and gives it to the public functions. It ends with a
result or with an `OgiveError`; any other exception is a fault of ours. Meanwhile an audit hook watches the interpreter:
nothing may be written outside the trial's folder, no planted file read, no host asked and no process started.
"""

import copy
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml
from affine import Affine
from odc.geo.geobox import GeoBox

from .. import _ledger, _sources, catalog, grid, run, runfile, store
from .._intake import catalog_folder
from ..cube import open_cube
from ..errors import OgiveError
from ..pairs import make_pairs
from ..search import scene_table, search
from .items import make_item
from .plan import WorldSpec, plan_scenes
from .readers import FakeReader
from .stores import lazy_velocity

PLANTED = "planted-secret.tif"
"""A file beside the trials' folder, which documents name and nobody may open."""
JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 3, 1e308, float("nan"), float("inf"), 10**30, "", " ", "x" * 5000, "\x00", "\u202e",
    "NaN", "2021-13-45", "2021-07-01", "EPSG:32632", "EPSG:0", "../../" + PLANTED, "../" + PLANTED, "/etc/passwd",
    "file:///etc/passwd", "http://127.0.0.1:9/a.tif", "https://u:p@127.0.0.1:9/a.tif", "s3://bucket/a.tif", "http://[",
    "/vsizip//vsicurl/http://127.0.0.1:9/a.zip", "WMS:http://127.0.0.1:9", "<VRTDataset/>", "+init=/etc/passwd:1",
    "{env(HOME)}", "{func(os:system)}", "{{ 1 }}", "os:system", "builtins:eval", [], {}, [[]], [None], {"a": {}},
    [1, 2], {"__class__": "x"}, {"type": "Point", "coordinates": []},
)  # fmt: skip
"""Values put in the place of others."""


def spoil(document: Any, rng: random.Random) -> Any:
    """A copy of a JSON document with one to four changes anywhere in it.

    Examples
    --------
    >>> spoil({"a": [1, 2], "b": {"c": 3}}, random.Random(0)) == spoil({"a": [1, 2], "b": {"c": 3}}, random.Random(0))
    True
    """
    box = [copy.deepcopy(document)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        parent, key = rng.choice(list(_places(box)))
        value = parent[key]
        match rng.randrange(6):
            case 0 if parent is not box:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(["id", "type", "", "../x", str(key) + "x"])] = parent.pop(key)
            case 2 if isinstance(value, list) and value:
                value.append(copy.deepcopy(rng.choice(value)))
            case 3:
                parent[key] = [value]
            case 4:
                other, name = rng.choice(list(_places(box)))
                parent[key] = copy.deepcopy(other[name])
            case _:
                parent[key] = copy.deepcopy(rng.choice(JUNK))
    return box[0]


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    pairs_of = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(pairs_of):
        yield node, key
        yield from _places(value)


def spoil_text(text: str, rng: random.Random) -> str:
    """A text with a piece cut out, repeated, or replaced by characters that mean something to a parser.

    Examples
    --------
    >>> spoil_text("a: 1", random.Random(1)) != spoil_text("a: 1", random.Random(3))
    True
    """
    start = rng.randrange(len(text))
    stop = min(len(text), start + rng.randint(1, 40))
    piece = rng.choice(["", text[start:stop] * 2, "[" * 3000, "{", "}", "&a [*a,*a]", "*a", "!!python/name:os.system ",
                        "\t", "\ud7ff", "\x00", "- ", ": ", "\n", '"', "9" * 5000])  # fmt: skip
    return text[:start] + piece + text[stop:]


@dataclass
class Bench:
    """Valid documents in a folder of their own.

    Parameters
    ----------
    folder : Path
        Empty; the trials live below it, in `inside`.
    """

    folder: Path
    reader: FakeReader = field(default_factory=lambda: FakeReader(lambda scene, y, x: y + x))

    def __post_init__(self) -> None:
        self.inside = self.folder / "inside"
        self.inside.mkdir()
        (self.folder / PLANTED).write_text("nobody may read this")
        spec = WorldSpec(size_km=(1.2, 1.5), n_sentinel2=3, n_landsat=1, start="2022-06-25", end="2022-08-10")
        box = GeoBox((120, 150), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
        found = [
            make_item(plan, {key: (f"{plan.id}.tif", box)}, cloud_cover=3.0, sun=(150.0, 40.0)).to_dict(
                include_self_link=False, transform_hrefs=False
            )
            for plan in plan_scenes(spec)
            for key in (["nir"] if plan.sensor == "sentinel-2" else ["pan"])
        ]
        self.items = {"type": "FeatureCollection", "features": found}
        self.catalogue = {
            "type": "Catalog", "id": "root", "stac_version": "1.0.0", "description": "a catalogue on disk",
            "links": [{"rel": "item", "href": f"./{k}.json"} for k in range(len(found))],
        }  # fmt: skip
        self.run = yaml.safe_load(runfile.template())
        self.run |= {
            "output": "out",
            "search": {"source": "valid.json", "sensor": "sentinel-2", "aoi": [10.29, 46.03, 10.31, 46.05]},
        }
        self.run["invert"] = {"method": "adaptive", "every": "5D"}
        self.run["pairs"] = {"days": [5, 60], "same_orbit": False}
        self.run["kernel"] = {"name": "ncc", "chip": 16, "search": 4, "step": 8}
        (self.inside / "valid.json").write_text(json.dumps(self.items))
        self.store = self.inside / "own.zarr"
        store.write(lazy_velocity((2, 16, 16), (1, 16, 16)), self.store, progress=False)
        self.others = self.inside / "others.zarr"
        _itslive().to_zarr(self.others, zarr_format=2, consolidated=False)

    def written(self, name: str, document: Any, rng: random.Random) -> Path:
        """A document as a file, one in five with a spoiled text instead of spoiled values."""
        dump: Callable[[Any], str] = yaml.safe_dump if name.endswith(".yaml") else json.dumps
        text = spoil_text(dump(document), rng) if rng.random() < 0.2 else dump(spoil(document, rng))
        path = self.inside / name
        path.write_text(text)
        return path

    @contextmanager
    def damaged(self, folders: tuple[Path, ...], rng: random.Random) -> Iterator[None]:
        """One JSON file below the folders spoiled, and mended afterwards."""
        files = sorted(p for f in folders for p in f.rglob("*") if p.suffix == ".json" or p.name.startswith(".z"))
        path = rng.choice(files)
        before = path.read_bytes()
        try:
            text = before.decode()
            spoiled = spoil(json.loads(text), rng)
            if isinstance(spoiled, dict) and spoiled.pop("sha256", None) and rng.random() < 0.7:
                # Not an accident but a forgery.
                path.write_bytes(_ledger.seal(spoiled))
            else:
                path.write_text(spoil_text(text, rng) if rng.random() < 0.2 else json.dumps(spoiled))
            yield
        finally:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(before)


def _itslive() -> xr.Dataset:
    """A cube in the layout of ITS_LIVE, as small as can be."""
    box = GeoBox((4, 5), Affine(120, 0, 600000, 0, -120, 5100000), "EPSG:32632")
    day = {"units": "days since 1970-01-01"}
    rate = {"units": "meter/year", "grid_mapping": "mapping", "missing_value": -32767}
    maps = {n: (("mid_date", "y", "x"), np.arange(40, dtype=np.int16).reshape(2, 4, 5), rate) for n in ("vx", "vy")}
    dates = {f"acquisition_date_img{k}": ("mid_date", np.array([18000.0, 18100.0]) + 16 * k, day) for k in (1, 2)}
    codes = {"satellite_img1": ("mid_date", np.array(["2A", "8"]))}
    mapping = {"mapping": ((), "", grid.mapping(box).attrs)}
    coords = {"mid_date": ("mid_date", np.array([18024.0, 18124.0]), day), **grid.coordinates(box)}
    return xr.Dataset({**maps, **dates, **codes, **mapping}, coords, {"author": "ITS_LIVE", "projection": "32632"})


def _cube(bench: Bench, found: Any) -> None:
    opened = open_cube(found, loader=bench.reader)
    make_pairs(opened, days=(1, 400), same_orbit=False)
    if bench.reader.count:
        raise AssertionError("open_cube has read pixels")


def try_items(bench: Bench, rng: random.Random) -> None:
    """Items: search, table, lazy cube, pairs."""
    path = bench.written("items.json", bench.items, rng)
    area = (10.2, 46.0, 10.5, 46.1) if rng.random() < 0.3 else None
    found = search(area, source=path, max_cloud=rng.choice([None, 50.0]))
    scene_table(found, area)
    _cube(bench, [item for item in found if catalog.sensor_of(item).name == "sentinel-2"])


def try_catalogue(bench: Bench, rng: random.Random) -> None:
    """A static STAC catalogue and its items."""
    folder = bench.inside / "static"
    folder.mkdir(exist_ok=True)
    for k, item in enumerate(bench.items["features"]):
        (folder / f"{k}.json").write_text(json.dumps(spoil(item, rng) if rng.random() < 0.1 else item))
    scene_table(search(None, source=bench.written("static/catalog.json", bench.catalogue, rng)))


def try_intake(bench: Bench, rng: random.Random) -> None:
    """An intake catalog, and the readers that it makes; what intake itself says of them is not ours."""
    document = yaml.safe_load((catalog_folder() / rng.choice(["stac.yaml", "products.yaml"])).read_text())
    opened = catalog.open_catalog(bench.written("catalog.yaml", document, rng))
    for name in list(opened):
        try:
            opened[name]
        except Exception as error:
            logging.getLogger("ogive").debug("intake: %s", error)


def try_run(bench: Bench, rng: random.Random) -> None:
    """A run file, up to the lazy velocity; sources elsewhere are not asked."""
    config = run.load(bench.written("run.yaml", bench.run, rng))
    source = config.search.source
    if source not in catalog.endpoints() and not source.startswith(_sources.ADDRESSES):
        run.prepare(config, check=False)


def try_store(bench: Bench, rng: random.Random) -> None:
    """An own store: its metadata or its ledger."""
    with bench.damaged((bench.store, bench.store.with_name(bench.store.name + ".ledger")), rng):
        _first_error(
            lambda: store.open_velocity(bench.store, partial=rng.random() < 0.5),
            lambda: store.status(bench.store),
            lambda: store.verify(bench.store),
        )


def _first_error(*calls: Callable[[], Any]) -> None:
    """Make every call, then raise the first clear error; another kind of exception ends the trial at once."""
    errors = []
    for call in calls:
        try:
            call()
        except OgiveError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def try_foreign(bench: Bench, rng: random.Random) -> None:
    """A store of others: its metadata."""
    with bench.damaged((bench.others,), rng):
        store.open_velocity(bench.others)


TRIALS: dict[str, Callable[[Bench, random.Random], None]] = {
    "items": try_items, "catalogue": try_catalogue, "intake": try_intake, "run": try_run, "store": try_store,
    "foreign": try_foreign,
}  # fmt: skip


@dataclass
class Tally:
    """What became of the documents of one kind."""

    kind: str
    documents: int = 0
    results: int = 0
    errors: int = 0
    others: list[str] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)


_WATCHED: list[tuple[Path, list[str], bool]] = []
_FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
              "os.fork")  # fmt: skip


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHED:
        return
    folder, breaches, private = _WATCHED[-1]
    if event in _FORBIDDEN:
        breaches.append(f"{event} {arguments!r:.200}")
    elif event == "open" and isinstance(arguments[0], str):
        path, flags = arguments[0], arguments[2] or 0
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        outside = not Path(os.path.realpath(path)).is_relative_to(folder)
        if (private and (PLANTED in path or path == "/etc/passwd")) or (
            writes and outside and "__pycache__" not in path
        ):
            breaches.append(f"open {path}")


@contextmanager
def watched(folder: Path, private: bool = True) -> Iterator[list[str]]:
    """Collect what the interpreter does that no document may make it do; `folder` alone may be written to.

    With `private` nothing planted may be read either; run files may name any file, because the user runs them.
    """
    if _hook not in _INSTALLED:
        sys.addaudithook(_hook)
        _INSTALLED.append(_hook)
    breaches: list[str] = []
    _WATCHED.append((folder.resolve(), breaches, private))
    try:
        yield breaches
    finally:
        _WATCHED.pop()


_INSTALLED: list[Callable[..., None]] = []
"""A hook stays as long as the process."""


def fuzz(count: int, seed: int, kinds: tuple[str, ...] = tuple(TRIALS)) -> list[Tally]:
    """Try spoiled documents of each kind.

    Parameters
    ----------
    count : int
        Documents in all; each kind has the same number.
    seed : int
        The same seed gives the same documents.
    kinds : tuple of str
        Of `TRIALS`.
    """
    tallies = []
    folder = Path(tempfile.mkdtemp(prefix="ogive-mutate-"))
    try:
        bench = Bench(folder)
        for kind in kinds:
            tally = Tally(kind)
            tallies.append(tally)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for number in range(count // len(kinds)):
                    _one(bench, tally, f"{seed}/{kind}/{number}")
    finally:
        shutil.rmtree(folder)
    return tallies


def _one(bench: Bench, tally: Tally, name: str) -> None:
    tally.documents += 1
    with watched(bench.inside, tally.kind != "run") as breaches:
        try:
            TRIALS[tally.kind](bench, random.Random(name))
            tally.results += 1
        except OgiveError:
            tally.errors += 1
        except Exception as error:  # every one of them is what this file is looking for
            at = traceback.extract_tb(error.__traceback__)
            ours = [f for f in at if "/ogive/" in f.filename and "/testing/" not in f.filename]
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
            tally.others.append(f"{name}: {type(error).__name__}: {error!s:.160} ({where})")
    tally.breaches += [f"{name}: {breach}" for breach in breaches]
