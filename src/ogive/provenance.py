"""What was done to a dataset, in its attribute `provenance` (JSON): it travels with the data and identifies a store.

`write` compares it, so a step that changes values must record itself: two thresholds must never look like one store.
"""

import json
from typing import Any

import xarray as xr


def read(ds: xr.Dataset) -> dict[str, Any]:
    """The provenance of a dataset; empty if it has none.

    Examples
    --------
    >>> read(xr.Dataset())
    {}
    """
    found: dict[str, Any] = json.loads(ds.attrs.get("provenance", "{}"))
    return found


def record(ds: xr.Dataset, step: str, **parameters: Any) -> xr.Dataset:
    """The same dataset with one more step at the end of its provenance.

    Parameters
    ----------
    ds : xr.Dataset
    step : str
        Name of the function.
    **parameters
        Whatever changes its result; anything that JSON cannot hold is stored as text.

    Examples
    --------
    >>> read(record(xr.Dataset(), "correct.stable_ground", floor=0.1))["steps"]
    [{'floor': 0.1, 'step': 'correct.stable_ground'}]
    """
    steps = [*read(ds).get("steps", []), {"step": step, **parameters}]
    return ds.assign_attrs(provenance=json.dumps({**read(ds), "steps": steps}, sort_keys=True, default=str))
