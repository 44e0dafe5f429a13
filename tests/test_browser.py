"""The explorer as its users meet it: in a browser, in Voila and in JupyterLab, by mouse and by keyboard.

With OGIVE_PICTURES=1 the first test makes the pictures of the documentation on its way.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
import requests
from nbformat.v4 import new_code_cell, new_notebook

import ogive as og
from ogive.testing import browser
from ogive.testing.browser import Watched
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import World, make_world
from ogive.testing.servers import free_ports

WAIT = 180.0
"""Longest wait for anything [s]."""
SPEC = WorldSpec(
    size_km=(2.4, 3.0), n_sentinel2=10, n_landsat=2, start="2022-05-20", end="2022-09-30", cloud=0.02, speed=100.0,
    wedge=False,
)  # fmt: skip
PICTURES = Path(__file__).parents[1] / "docs" / "images"
TABS = ("1 Where", "2 Scenes", "3 Pairs", "4 Parameters", "5 Run", "6 Look", "7 Take away")
SETTINGS = {"chip": "24", "search": "6", "step": "4"}
"""Of the matching, as typed; the rest is left as it is."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def chromium() -> None:
    """Without a browser there is nothing to test; in CI that is a failure."""
    try:
        browser.chromium()
    except og.errors.ParameterError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("archive"), SPEC, seed=3)


@pytest.fixture(scope="module")
def notebook(world: World) -> Path:
    """One cell beside the archive: what the documentation says to write, with blocks so small that there are some."""
    cell = """import ogive as og
og.blocks._TILE_PIXELS = 128
og.view.explore(archive="items.json", outlines="outlines.geojson")"""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = world.items_file.parent / "explore.ipynb"
    made = new_notebook(cells=[new_code_cell(cell)], metadata={"kernelspec": kernel})  # type: ignore[no-untyped-call]
    nbformat.write(made, path)  # type: ignore[no-untyped-call]
    return path


def go_to(seen: Watched, title: str, *controls: str) -> None:
    """Open a step; its controls must be in the window as a whole."""
    seen.page.get_by_role("tab", name=title).click()
    seen.page.locator(controls[0]).first.wait_for()
    assert seen.cut_off(*controls) == {}


def press(seen: Watched, control: str) -> None:
    """Press a button by keyboard alone."""
    seen.tab_to(control)
    seen.page.keyboard.press("Enter")


def says(seen: Watched, control: str, words: str) -> None:
    """Wait until a place on the page says something; an error is shown instead of a timeout."""
    place = seen.page.locator(control).filter(has_text=re.compile(words))
    wrong = seen.page.locator(".ogive-error[role=alert]:visible")
    place.or_(wrong).first.wait_for()
    assert wrong.count() == 0, wrong.first.inner_text()


def drawn(seen: Watched, picture: str, before: Any = None) -> Any:
    """Wait for a picture, or for another than before; its address."""
    found = seen.page.wait_for_function(
        "([s, old]) => { const i = document.querySelector(s);"
        " return i && i.complete && i.naturalWidth > 100 && i.src !== old && i.src }",
        arg=[picture, before],
    )
    return found.json_value()


def keep(seen: Watched, name: str) -> None:
    """Make a picture for the documentation, if that is asked for: the part of the window that is in use."""
    if os.environ.get("OGIVE_PICTURES") != "1":
        return
    seen.page.wait_for_timeout(1500)  # maps move and fade
    seen.page.mouse.move(1279, 719)
    box = seen.page.locator(".ogive-steps").bounding_box()
    assert box is not None
    clip = {"x": box["x"] - 4, "y": box["y"] - 4, "width": box["width"] + 8, "height": box["height"] + 8}
    seen.page.screenshot(path=PICTURES / f"explore-{name}.png", clip=clip)  # type: ignore[arg-type]


def choose_area(seen: Watched) -> None:
    seen.page.locator(".ogive-where-map").first.wait_for()
    assert seen.page.get_by_role("tab", name=re.compile(r"^\d ")).all_inner_texts() == list(TABS)
    go_to(seen, TABS[0], ".ogive-where-map", ".ogive-aoi", ".ogive-set-area")
    seen.page.locator(".ogive-aoi input").fill("RGI60-00.00001")
    press(seen, ".ogive-set-area")
    says(seen, ".ogive-pathrow", "32TMS")


def tick_scenes(seen: Watched) -> None:
    """All are found and ticked; the first is unticked."""
    go_to(seen, TABS[1], "button.ogive-search", ".ogive-source", ".ogive-cover", ".ogive-scene-map", ".ogive-page-next")
    press(seen, "button.ogive-search")
    says(seen, ".ogive-count", "12 of 12 ticked")
    seen.page.locator(".ogive-tick input").first.uncheck()
    says(seen, ".ogive-count", "11 of 12 ticked")


def try_tile(seen: Watched) -> None:
    go_to(seen, TABS[3], ".ogive-kernel", ".ogive-trial-pair", ".ogive-trial-map", ".ogive-chip", ".ogive-step")
    for name, value in SETTINGS.items():
        field = seen.page.locator(f".ogive-parameters .ogive-{name} input")
        field.fill(value)
        field.press("Enter")
    # A click is a question about the parameters as they stand; they stand when the run file says so.
    seen.page.locator(".ogive-run-file").filter(has_text=f"step: {SETTINGS['step']}").wait_for(state="attached")
    seen.page.locator(".ogive-trial-map .leaflet-container, .ogive-trial-map.leaflet-container").first.click()
    drawn(seen, ".ogive-tile")


def look_at_a_place(seen: Watched) -> None:
    go_to(seen, TABS[5], ".ogive-look-store", ".ogive-map", ".ogive-look-time", ".ogive-look-at", ".ogive-look-what")
    seen.page.locator(".ogive-map .leaflet-image-layer").first.wait_for()
    box = seen.page.locator(".ogive-map .leaflet-image-layer").first.bounding_box()
    assert box is not None
    seen.page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    drawn(seen, ".ogive-look-picture")


def test_from_an_area_to_a_series_in_voila(notebook: Path, world: World) -> None:
    with browser.voila(notebook, timeout=WAIT) as url, browser.watched(url, timeout=WAIT) as seen:
        choose_area(seen)
        keep(seen, "where")
        tick_scenes(seen)
        seen.page.locator(".ogive-cover").click()
        says(seen, ".ogive-scenes", r"usable.*\d %")
        seen.page.locator(".ogive-row").nth(2).click()
        says(seen, ".ogive-shown", world.items[2].id)
        keep(seen, "scenes")

        go_to(seen, TABS[2], ".ogive-pairs-days", ".ogive-pairs-reference", ".ogive-network")
        ticked = list(world.items)[1:]
        says(seen, ".ogive-pair-count", f"^{len(og.make_pairs(ticked))} pairs")
        seen.page.locator(".ogive-pairs-max-per-scene .noUi-handle").focus()
        for number, key in ((1, "ArrowRight"), (None, "ArrowLeft")):
            before = drawn(seen, ".ogive-network")
            seen.page.keyboard.press(key)
            pairs = og.make_pairs(ticked, max_per_scene=number)
            says(seen, ".ogive-pair-count", rf"^{len(pairs)} pairs\. ")
            drawn(seen, ".ogive-network", before)
        keep(seen, "pairs")

        try_tile(seen)
        keep(seen, "parameters")

        go_to(seen, TABS[4], ".ogive-folder", ".ogive-explain", ".ogive-run", ".ogive-stop")
        seen.page.locator(".ogive-folder input").fill("velocity")
        press(seen, ".ogive-explain")
        says(seen, ".ogive-price", "blocks")
        press(seen, ".ogive-run")
        says(seen, ".ogive-progress", r"\d of \d+ blocks")
        drawn(seen, ".ogive-blocks")
        says(seen, ".ogive-news", "Done")
        assert seen.cut_off(".ogive-blocks") == {}
        keep(seen, "run")

        look_at_a_place(seen)
        says(seen, ".ogive-look-words", "here")
        keep(seen, "look")
        go_to(seen, TABS[6], ".ogive-take-folder", ".ogive-take-map-png", ".ogive-take-session-py")
    assert seen.errors == []
    assert seen.outside == []
    with og.open_velocity(notebook.parent / "velocity" / "matches.zarr") as matches:
        assert matches.sizes["mid_date"] == len(pairs)
    with og.open_velocity(notebook.parent / "velocity" / "series.zarr") as series:
        assert series["v"].notnull().mean() > 0.2


def test_in_jupyterlab(notebook: Path) -> None:
    """The same steps, shorter, where the application is the output of a cell."""
    with browser.lab(notebook, timeout=WAIT) as url, browser.watched(url, size=(1700, 1000), timeout=WAIT) as seen:
        seen.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
        seen.page.get_by_text("(ipykernel) | Idle").wait_for()  # the indicator says so before there is a kernel
        seen.page.get_by_role("menuitem", name="Run", exact=True).click()
        seen.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        choose_area(seen)
        tick_scenes(seen)
        try_tile(seen)
        go_to(seen, TABS[4], ".ogive-run")
        seen.page.locator(".ogive-folder input").fill("again")
        seen.page.locator(".ogive-run").click()
        says(seen, ".ogive-news", "Done")
        look_at_a_place(seen)
    assert seen.errors == []
    assert seen.outside == []


def test_without_a_notebook_one_command_opens_it(world: World, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).with_name("ogive")), "explore", "--no-browser", f"--port={port}"]
    command += [f"--archive={world.items_file}", f"--outlines={world.outlines}"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + WAIT
        while not (address := re.search(rf"http://127\.0\.0\.1:{port}/\?token=\w+", log.read_text())):
            assert time.monotonic() < end, log.read_text()
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        stranger = requests.get(address[0].partition("?")[0], allow_redirects=False, timeout=WAIT)
        assert stranger.status_code == 302
        assert "login" in stranger.headers["Location"]
        with browser.watched(address[0]) as seen:
            seen.page.get_by_role("tab", name="2 Scenes").click()
            assert seen.page.locator(".ogive-explore input[type=text]:visible").first.input_value() == str(
                world.items_file
            )
            assert seen.errors == seen.outside == []
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
