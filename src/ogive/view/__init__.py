"""Maps and time series as matplotlib figures; the only place that imports matplotlib.

Every function returns a `matplotlib.figure.Figure` of its own, without pyplot's global state, so it can be called
from a Dask worker, a thread or a server; `path=` saves it (PNG, PDF or SVG, by suffix). The functions are loaded on
first use, so `import ogive` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .animation import speed_animation
    from .comparison import comparison_map
    from .explorer import explore
    from .jobs import block_map, tile_map
    from .layers import layer_map
    from .maps import difference_map, flag_map, speed_map
    from .series import pair_network, plot_series, speed_profile
    from .spacetime import hovmoller
    from .validation import stakes_scatter, stakes_series

__all__ = [
    "block_map", "comparison_map", "difference_map", "explore", "flag_map", "hovmoller", "layer_map", "pair_network",
    "plot_series", "speed_animation", "speed_map", "speed_profile", "stakes_scatter", "stakes_series", "tile_map",
]  # fmt: skip

_HOME = {"explore": "explorer", "hovmoller": "spacetime", "layer_map": "layers", "speed_animation": "animation"}
_HOME |= {"comparison_map": "comparison"}
_HOME |= dict.fromkeys(("difference_map", "flag_map", "speed_map"), "maps")
_HOME |= dict.fromkeys(("block_map", "tile_map"), "jobs")
_HOME |= dict.fromkeys(("pair_network", "plot_series", "speed_profile"), "series")
_HOME |= dict.fromkeys(("stakes_scatter", "stakes_series"), "validation")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
