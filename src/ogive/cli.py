"""The command line: a shell over the public functions.

Exit codes: 0 done, 1 failed on the way, 2 could not start (bad input, nothing was written).
"""

import json
import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from .errors import ClusterError, OgiveError, ReadError, StoreError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Glacier velocity cubes and time series from satellite scene archives.",
)  # fmt: skip
# Tables need some width where there is no terminal to ask.
console = Console(width=None if sys.stdout.isatty() else 120)
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, nothing else on standard output.")]
RunFile = Annotated[Path, typer.Argument(help="The run file, from `ogive init`.")]
StorePath = Annotated[str, typer.Argument(help="A velocity or series store: path or URL.")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put scenes, stores and report.")] = Path("ogive-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the synthetic glacier.")] = 0,
    as_json: Json = False,
) -> None:
    """Run everything on a synthetic glacier with known motion; needs no network."""
    from .demo import demo as run_demo

    result = run_demo(folder, seed=seed, progress=not as_json)
    _finish(result, as_json, ("Pairs against truth", "Series against truth", "Stable ground"))


@app.command()
def search(
    aoi: Annotated[str, typer.Argument(help="RGI id, west,south,east,north, lon,lat, or a vector file.")],
    datetime: Annotated[str | None, typer.Option(help="2021-06/2022-10")] = None,
    sensor: Annotated[str | None, typer.Option(help="sentinel-2 or landsat")] = None,
    max_cloud: Annotated[float | None, typer.Option(help="Most cloud of a scene [percent].")] = None,
    source: Annotated[str, typer.Option(help="Catalog name, STAC API URL, or file.")] = "earth-search",
    outlines: Annotated[Path | None, typer.Option(help="File of RGI outlines.")] = None,
    files: Annotated[Path | None, typer.Option(help="Folder of the images that a file of items names.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the items as an ItemCollection.")] = None,
    as_json: Json = False,
) -> None:
    """Find scenes and list them."""
    from .aoi import read_aoi, resolve_aoi
    from .local import write_items
    from .search import scene_table
    from .search import search as find

    area = resolve_aoi(read_aoi(aoi), outlines)
    items = find(area, datetime, sensor=sensor, max_cloud=max_cloud, source=source, files=files)
    if output is not None:
        write_items(items, output)
    _show("Scenes", scene_table(items, area), as_json)


@app.command()
def items(
    folder: Annotated[Path, typer.Argument(help="Folder of GeoTIFFs with their MTL.txt, or Sentinel-2 band files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="ItemCollection to write.")] = Path("items.json"),
    band: Annotated[str, typer.Option(help="Band of files whose name does not tell it.")] = "nir",
    as_json: Json = False,
) -> None:
    """Turn a folder of local scenes into STAC items, the source of a run."""
    from .local import local_items, write_items
    from .search import scene_table

    found = local_items(folder, band=band)
    write_items(found, output)
    _show(f"{len(found)} scenes, saved as {output}", scene_table(found), as_json)


@app.command()
def explore(
    source: Annotated[str | None, typer.Argument(help="A store to look at; without it, the first step opens.")] = None,
    archive: Annotated[str | None, typer.Option(help="Catalog name, STAC API URL, or file of items.")] = None,
    outlines: Annotated[str | None, typer.Option(help="File of glacier outlines.")] = None,
    stakes: Annotated[str | None, typer.Option(help="Table of velocities measured on the ground.")] = None,
    config: Annotated[str | None, typer.Option("--run", help="A run file to start from.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 8866, or the next one that is free.")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, open nothing.")] = False,
) -> None:
    """Open the explorer in the browser; Ctrl-C ends it. Needs pip install 'ogive[notebook]'."""
    from .view.application import application

    options = {"source": source, "outlines": outlines, "stakes": stakes, "config": config, "archive": archive}
    with application(options, port=port, browser=not no_browser) as server, suppress(KeyboardInterrupt):
        if server.wait():
            raise OgiveError("ogive explore", rule="could not start", fix="see the lines above")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Run file to make.")] = Path("run.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented run file with every field and its default."""
    from .runfile import template

    if path.exists() and not force:
        raise OgiveError(str(path), rule="exists", fix="choose another name, or --force")
    path.write_text(template())
    console.print(f"{path}: edit it, then [bold]ogive explain {path}[/] and [bold]ogive run {path}[/]")


@app.command()
def explain(
    path: RunFile,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Compute one block here, to tell minutes; reads its scenes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a run costs: scenes, pairs, blocks, gigabytes, memory, precision; reads no pixels unless calibrated."""
    from dataclasses import asdict

    from . import run as runs
    from .explain import explain as price

    config = runs.load(path)
    cost = price(runs.prepare(config, check=False)[1], workers=config.workers, calibrate=calibrate)
    if as_json:
        sys.stdout.write(json.dumps({**asdict(cost), "worker_gigabytes": cost.worker_gigabytes}) + "\n")
    else:
        console.print(str(cost))


@app.command()
def run(path: RunFile, as_json: Json = False) -> None:
    """Do a run; run it again after an interruption and it goes on where it was."""
    from . import run as runs

    _finish(runs.run(runs.load(path), progress=not as_json), as_json, ("Stable ground", "Flags"))


@app.command()
def update(path: RunFile, as_json: Json = False) -> None:
    """Extend a finished run by the scenes that have come since; only new pairs are matched."""
    from . import run as runs
    from .update import update as extend

    _finish(extend(runs.load(path), progress=not as_json), as_json, ("Stable ground", "Flags"))


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Output folder of a run.")], as_json: Json = False) -> None:
    """Write the report of a finished run anew."""
    from . import run as runs

    _finish(runs.report(folder), as_json, ("Stable ground", "Flags"))


@app.command()
def status(path: StorePath, as_json: Json = False) -> None:
    """How many blocks of a store are done, and why others failed."""
    from . import store

    count = store.status(path)
    rows = store.ledger(path)
    failed = [row for row in rows if row["status"] == "failed"]
    lost = {note["scene"]: note["error"] for row in rows for note in row.get("unreadable", ())}
    if as_json:
        sys.stdout.write(json.dumps({**count, "failures": failed, "lost": lost}) + "\n")
        return
    console.print(f"{count['done']} of {count['blocks']} blocks done, {count['failed']} failed")
    if "new" in count:
        console.print(f"being extended by {count['new']} pairs, which appear when all are there")
    for row in failed:
        console.print(f"  block {row['block']}: {row['error']}", markup=False)
    for scene, error in sorted(lost.items()):
        console.print(f"  unreadable, its pairs are flagged: {scene}: {error}", markup=False)


@app.command()
def verify(
    path: StorePath,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mark bad blocks as not done; the same run computes them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every block back and compare it with its checksum; exit code 1 if anything is wrong."""
    from . import store

    faults = store.verify(path, repair=repair)
    if as_json or len(faults):
        _show(f"{len(faults)} faults", faults, as_json)
    else:
        console.print("every block is there and whole")
    if len(faults) and not repair:
        raise typer.Exit(1)


@app.command()
def invert(
    path: StorePath,
    output: Annotated[str, typer.Option("--output", "-o", help="Series store to write: path or URL.")],
    every: Annotated[str | None, typer.Option(help="Window, a pandas offset; default: that of the method.")] = None,
    method: Annotated[str, typer.Option(help="adaptive, annual or ticoi.")] = "adaptive",
) -> None:
    """Invert a velocity store as it is (uncorrected) to a regular time series; a run file also corrects and filters."""
    from . import store
    from .invert import invert as solve

    store.write(solve(store.open_velocity(path), method=method, every=every), output)
    console.print(f"{output}: written")


@app.command()
def export(
    path: StorePath,
    output: Annotated[Path, typer.Argument(help="*.tif, *.nc, *.csv, *.parquet, or *.zarr for the ITS_LIVE layout.")],
    variable: Annotated[str, typer.Option(help="Variable of a GeoTIFF.")] = "v",
    when: Annotated[int | None, typer.Option(help="Position in time of a GeoTIFF; default: median over time.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write a store as GeoTIFF, netCDF, point table or ITS_LIVE Zarr, by the suffix."""
    from . import export as out
    from . import store
    from .errors import ParameterError

    ds = store.open_velocity(path)
    match output.suffix:
        case ".tif":
            out.to_geotiff(ds, output, variable=variable, when=when, overwrite=overwrite)
        case ".nc":
            out.to_netcdf(ds, output, overwrite=overwrite)
        case ".csv" | ".parquet":
            out.to_points(ds, output, overwrite=overwrite)
        case ".zarr":
            out.to_itslive(ds, output, overwrite=overwrite)
        case _:
            raise ParameterError("output", rule="must end in .tif, .nc, .csv, .parquet or .zarr", value=output.name)
    console.print(f"{output}: written")


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Where to put the checkpoint and the trained network.")],
    net: Annotated[str, typer.Option(help="Which network: flow_net or raft.")] = "flow_net",
    seed: Annotated[int, typer.Option(help="Seed of weights, samples and their order.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser; else the shipped network's.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long; the same line goes on [minutes].")] = None,
    device: Annotated[str, typer.Option(help="Where PyTorch computes: cpu or cuda.")] = "cpu",
    name: Annotated[str, typer.Option(help="Name of the trained network.")] = "flow-net",
    as_json: Json = False,
) -> None:
    """Train a learned matcher on synthetic glaciers; run it again after an interruption and it goes on where it was."""
    from .kernels._flow_weights import required

    for package in ("torch", "safetensors", "onnx", "onnxruntime"):
        required(package, "train")
    from .learn.card import publish
    from .learn.train import recipe_of
    from .learn.train import train as learn

    recipe = recipe_of(net, seed=seed, **({} if steps is None else {"steps": steps}))
    limit = float("inf") if minutes is None else minutes
    said = Console(stderr=True, soft_wrap=True).print
    trained = learn(recipe, folder, minutes=limit, device=device, report=lambda line: said(line, highlight=False))
    if trained is None:
        said(f"not done yet: the same line goes on from {folder}", highlight=False)
        return
    path = publish(trained, recipe, folder / name)
    scores = json.loads(path.read_text())["scores"]
    table = pd.DataFrame([{"level": level, **figures} for level, figures in scores.items()])
    _show(f"Trained: kernel {net}, weights {path}", table, as_json)


@app.command()
def finetune(
    path: RunFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Name of the new network: NAME.json and its files.")],
    weights: Annotated[
        str | None, typer.Option(help="What to start from: a shipped network, or a card; default: the run file's.")
    ] = None,
    steps: Annotated[int, typer.Option(help="At most so many steps.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of tiles, samples and their order.")] = 0,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long; the same line goes on [minutes].")] = None,
    device: Annotated[str, typer.Option(help="Where PyTorch computes: cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Fit the learned matcher to the scenes of a run, whose motion need not be known; what is worse is not kept."""
    from . import run as runs
    from .kernels import FlowNet
    from .kernels._flow_weights import required
    from .pairs import make_pairs

    for package in ("torch", "safetensors", "onnx", "onnxruntime"):
        required(package, "train")
    from .learn.finetune import Tuning
    from .learn.finetune import finetune as learn

    config = runs.load(path)
    kernel, limit = config.make_kernel(), float("inf") if minutes is None else minutes
    if not isinstance(kernel, FlowNet):
        kernel = FlowNet()
    cube, _ = runs.prepare(config, kernel=kernel)
    said = Console(stderr=True, soft_wrap=True).print
    tuned = learn(
        cube, make_pairs(cube, runs.pair_rules(config.pairs)), output, weights=weights or kernel.weights,
        tuning=Tuning(steps=steps, seed=seed, search=kernel.search), minutes=limit, device=device,
        report=lambda line: said(line, highlight=False),
    )  # fmt: skip
    if tuned is None:
        said(f"not done yet: the same line goes on from {output}.checkpoint", highlight=False)
        return
    rows = [
        {"weights": name, "step": s["step"], "closure median": s["median"], "closure rms": s["rms"]}
        | {f"bias {level}": bias for level, bias in s["bias"].items()}
        for name, s in (("before", tuned.before), ("after", tuned.after))
    ]
    _show(f"Kernel flow_net, weights {tuned.weights}", pd.DataFrame(rows), as_json)


def _finish(result: Any, as_json: bool, names: tuple[str, ...]) -> None:
    if as_json:
        sys.stdout.write(result.to_json() + "\n")
        return
    for name in names:
        if name in result.tables:
            _show(name, result.tables[name], False)
    console.print(
        f"matches   {result.matches}",
        f"velocity  {result.velocity}",
        *([] if result.series is None else [f"series    {result.series}"]),
        sep="\n",
        markup=False,
    )
    for picture in ("map.png", "series.png", "profile.png"):
        if (result.report.parent / picture).exists():
            console.print(f"figure    {result.report.parent / picture}", markup=False)
    console.print(f"report    {result.report}", markup=False)


def _show(title: str, frame: pd.DataFrame, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(frame.to_json(orient="records", date_format="iso") + "\n")
        return
    from .report import format_value

    units = frame.attrs.get("units", {})
    table = Table(title=title, title_justify="left")
    for column in frame.columns:
        number = pd.api.types.is_numeric_dtype(frame[column])
        table.add_column(
            f"{column} ({units[column]})" if column in units else str(column), justify="right" if number else "left"
        )
    for row in frame.itertuples(index=False):
        table.add_row(*(format_value(value) for value in row))
    console.print(table)


def main() -> None:
    """Entry point: errors become one line and an exit code."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
    logging.getLogger("ogive").setLevel(logging.INFO)
    try:
        app()
    except OgiveError as error:
        # Failing while reading, writing or computing is a failed run; anything else kept it from starting.
        _complain(error)
        sys.exit(1 if isinstance(error, ReadError | StoreError | ClusterError) else 2)
    except OSError as error:  # a folder that is not there, a full disk: the system's own words name the file
        _complain(error)
        sys.exit(1)


def _complain(error: Exception) -> None:
    """One line, even where a library put its own lines into the message."""
    Console(stderr=True, soft_wrap=True).print("ogive:", *str(error).split(), markup=False, highlight=False)
