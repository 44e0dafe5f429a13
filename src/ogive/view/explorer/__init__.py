"""`explore`: from an area to velocities and files in one application, without a line of code.

    Where ─► Scenes ─► Pairs ─► Parameters ─► Run ─► Look ─► Take away

The steps share a `Session` and nothing else. Each is a thin skin over public functions, and its truth is the run file.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import OgiveError, ParameterError

if TYPE_CHECKING:
    from ._session import Session


class Explorer:
    """The application; in a notebook it shows itself.

    Attributes
    ----------
    session : Session
        What was chosen; `session.config` is the run file.
    steps : dict of str to step
        By name: where, scenes, pairs, parameters, running, look, takeaway.
    widget : ipywidgets.Widget
    """

    def __init__(self, session: "Session", steps: dict[str, Any], opened: str) -> None:
        import ipywidgets

        self.session, self.steps = session, steps
        self.tabs = ipywidgets.Tab([step.widget for step in steps.values()])
        for k, step in enumerate(steps.values()):
            self.tabs.set_title(k, f"{k + 1} {step.title}")
        self.tabs.selected_index = list(steps).index(opened)
        self.tabs.add_class("ogive-steps")
        # Runs into the same folder leave the names of the stores as they are.
        self.tabs.observe(lambda _: self._opened(), "selected_index")
        self.widget = ipywidgets.VBox([ipywidgets.HTML(f"<style>{_STYLE}</style>"), self.tabs])
        self.widget.add_class("ogive-explore")

    def _opened(self) -> None:
        if list(self.steps)[self.tabs.selected_index or 0] == "look":
            self.steps["look"].refresh()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)  # type: ignore[no-untyped-call]


def explore(
    source: Any = None, *, archive: str | Path = "earth-search", outlines: Any = None, stakes: Any = None,
    kernel: Any = None, cubes: Any = None, client: Any = None, basemap: Any = None, config: Any = None,
) -> Explorer:  # fmt: skip
    """Open the explorer.

    Parameters
    ----------
    source : path, URL, Dataset or mapping, optional
        Velocities to look at: a store or several by name, or a Dataset. Without it the first step opens.
    archive : str or Path
        Where scenes are searched, as `source` of `ogive.search`.
    outlines : path, optional
        Vector file of glacier outlines: they can be picked, and cloud is counted over them.
    stakes : path or DataFrame, optional
        Measured on the ground, to compare with.
    kernel : Kernel or callable, optional
        A matching function of your own, offered beside the kernels.
    cubes : path or URL, optional
        Table of ready-made cubes, as in `ogive.itslive_cubes`.
    client : distributed.Client, optional
        Where runs are computed; default: threads of this process.
    basemap : ipyleaflet layer, optional
        Under the maps. Default: nothing, so that no server is asked for anything.
    config : RunConfig or path of a run file, optional
        To start from.

    Returns
    -------
    Explorer

    Raises
    ------
    OgiveError
        ipywidgets and ipyleaflet are not installed, or the run file is not understood.

    Examples
    --------
    >>> app = explore()
    >>> ", ".join(step.title for step in app.steps.values())
    'Where, Scenes, Pairs, Parameters, Run, Look, Take away'
    """
    missing = [name for name in ("ipywidgets", "ipyleaflet") if find_spec(name) is None]
    if missing:
        raise OgiveError("explore", rule=f"needs {' and '.join(missing)}", fix="pip install 'ogive[explore]'")
    from ...run import RunConfig, load
    from ._session import Session
    from .look import Look
    from .pairs import Pairs
    from .parameters import Parameters
    from .running import Running
    from .scenes import Scenes
    from .takeaway import TakeAway
    from .where import Where

    session = Session()
    session.config = config if isinstance(config, RunConfig) else RunConfig() if config is None else load(config)
    if config is None:
        session.configure(search={"source": str(archive)}, stable={"ice": None if outlines is None else str(outlines)})
    ground = {"outlines": outlines, "basemap": basemap}
    steps: dict[str, Any] = {
        "where": Where(session, **ground),
        "scenes": Scenes(session, **ground),
        "pairs": Pairs(session),
        "parameters": Parameters(session, kernel=kernel, cubes=cubes, basemap=basemap),
        "running": Running(session, client=client),
        "look": Look(session, stakes=stakes),
        "takeaway": TakeAway(session),
    }
    if source is not None:
        stores = source if isinstance(source, Mapping) and not hasattr(source, "encoding") else {"velocity": source}
        session.stores = {str(name): _address(store) for name, store in stores.items()}
    return Explorer(session, steps, "where" if source is None else "look")


def _address(store: Any) -> str:
    """The path of a store, or of what was opened from one."""
    found = getattr(store, "encoding", {}).get("source", "") if hasattr(store, "encoding") else str(store)
    if not found:
        raise ParameterError(
            "source", rule="must be a store, or opened from one", fix="write it first: og.write(ds, path)"
        )
    return str(found)


_STYLE = """
.ogive-explore { font-size: 13px; }
.ogive-explore h3 { margin: 0 0 2px; font-size: 16px; }
.ogive-explore .widget-html-content { line-height: 1.45; }
.ogive-explore p { margin: 4px 0; line-height: 1.4; }
.ogive-explore label { font-weight: 600; }
.ogive-explore .ogive-help, .ogive-explore .ogive-unit { color: #555; font-size: 12px; line-height: 1.3; }
.ogive-explore .ogive-help { padding-left: 6px; }
.ogive-explore .ogive-table { border-collapse: collapse; line-height: 1.6; }
.ogive-explore .ogive-table td, .ogive-explore .ogive-table th { text-align: left; padding: 0 14px 0 0; }
.ogive-explore .ogive-cells { display: grid; column-gap: 0; line-height: 28px; border-bottom: 1px solid #e4e4e4; }
.ogive-explore .ogive-cells span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; padding: 0 6px; }
.ogive-explore .ogive-head { font-weight: 600; padding: 0 0 0 8px; text-align: left; margin: 0; background: #eef1f4; }
.ogive-explore .ogive-row { margin: 0; padding: 0 8px; text-align: left; background: none;
   text-decoration: underline dotted; }
.ogive-explore .ogive-error { color: #8a1c00; }
.ogive-explore pre { font-size: 11.5px; line-height: 1.35; background: #f5f6f7; padding: 8px; }
.ogive-explore .leaflet-container { background: #e9ecee; }
"""
