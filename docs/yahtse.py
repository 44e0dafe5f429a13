"""Write the tables of yahtse.md from a finished run: `python docs/yahtse.py yahtse/result`.

The results there are never typed; the test of the page makes the same tables again and compares.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from ogive import flags, grid, run, store, summary, view
from ogive.flags import first_reason
from ogive.report import to_markdown

PAGE = Path(__file__).with_name("yahtse.md")
EVERY = 1000.0
"""Distance between the rows of the profile [m]."""


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of the page, by the name of their marker."""
    config = run.RunConfig.model_validate_json((folder / "run.json").read_text())
    raw, velocity = (store.open_velocity(folder / name).compute() for name in (run.MATCHES, run.VELOCITY))
    trunk, still = run.ice_mask(config, raw), run.stable_mask(config, raw)
    assert trunk is not None
    assert still is not None
    rock = run.ice_mask(config.model_copy(update={"stable": config.stable.model_copy(update={"ice": None})}), raw)
    assert rock is not None
    places = {"trunk": trunk, "stable rock": still, "all off rock": rock, "whole scene": trunk | True}
    one = velocity.isel(mid_date=0)
    found = summary.tables(raw, velocity, still, trunk)["Stable ground"]
    ground = pd.DataFrame(
        {
            "": found["stable ground"],
            "vectors": found["vectors"],
            **{
                f"{what} {c} ({unit})": found[f"{c}_{what.lower()}{key}"]
                for what, unit, key in (("median", "m/yr", ""), ("NMAD", "m/yr", ""), ("NMAD", "px", " px"))
                for c in ("vx", "vy")
            },
        }
    )
    reason = first_reason(one["flag"].values)
    rows = [{"state": "valid"} | {p: _percent(reason == 0, m.values) for p, m in places.items()}]
    for bit, meaning in flags.MEANINGS.items():
        if (reason == bit).any():
            rows.append(
                {"state": meaning.replace("_", " ")} | {p: _percent(reason == bit, m.values) for p, m in places.items()}
            )
    cells = pd.DataFrame([{"state": "cells"} | {p: f"{int(m.sum())}" for p, m in places.items()}, *rows])
    profile = view.speed_profile(velocity, config.profile, spacing=100.0)[1]
    at = profile[np.isclose(profile["distance"] % EVERY, 0)]
    line = pd.DataFrame(
        {
            "distance (km)": (at["distance"] / 1000).astype(int),
            "speed (m/yr)": at["v"],
            "speed (m/day)": at["v"] / grid.YEAR_DAYS,
            "moved in 16 days (m)": at["v"] / grid.YEAR_DAYS * float(one["date_dt"]),
        }
    ).reset_index(drop=True)
    speed = one["v"].values[trunk.values]
    figures = {f"{q:g} % of the trunk is slower than": float(np.nanpercentile(speed, q)) for q in (50, 95, 99)}
    figures["fastest on the profile"] = float(profile["v"].max())
    speeds = pd.DataFrame(
        {
            "speed": list(figures),
            "m/yr": list(figures.values()),
            "m/day": [v / grid.YEAR_DAYS for v in figures.values()],
        }
    )
    return {"ground": ground, "cells": cells, "profile": line, "speeds": speeds}


def _percent(where: np.ndarray, place: np.ndarray) -> str:
    return f"{100 * where[place].mean():.1f} %"


def splice(text: str, found: dict[str, pd.DataFrame]) -> str:
    """The page with the tables between their markers."""
    for name, table in found.items():
        block = f"<!-- {name} -->\n\n{to_markdown(table)}\n\n<!-- /{name} -->"
        text, count = re.subn(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE.name} needs the markers of {name!r} once, and has them {count} times")
    return text


if __name__ == "__main__":
    PAGE.write_text(splice(PAGE.read_text(), tables(Path(sys.argv[1]))))
