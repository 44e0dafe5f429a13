"""Step 3, pairs: the rules as controls, the network that they make, and what it costs."""

from typing import Any

import ipywidgets

from ...errors import PairError
from ...explain import explain
from ...pairs import PairRules, make_pairs
from ...parameters import parameters
from ...run import prepare
from .. import pair_network
from . import _areas
from ._notice import Notice, guarded
from ._session import Session
from .scenes import chosen_items

_MONTHS = ("any", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SUMMER = (("summer", "summer"),)
_LONGEST = 1200
"""Days at the end of the slider."""


class Pairs:
    """Choose which scenes are matched with which. Sets `session.pairs` and `config.pairs`.

    Parameters
    ----------
    session : Session
    """

    title = "Pairs"

    def __init__(self, session: Session) -> None:
        self.session, self.notice, self._filling = session, Notice(), False
        given = PairRules(**({} if session.config is None else session.config.pairs))
        short, long = given.ranges()[0][0], given.ranges()[-1][1]
        season: Any = ("summer", 0) if given.season == "summer" else given.season or (0, 0)
        self.controls: dict[str, Any] = {
            "days": ipywidgets.IntRangeSlider(value=(int(short), int(long)), min=0, max=_LONGEST),
            "same_orbit": ipywidgets.Checkbox(given.same_orbit, indent=False),
            "same_sensor": ipywidgets.Checkbox(given.same_sensor, indent=False),
            "max_sun_difference": ipywidgets.IntSlider(_or(given.max_sun_difference, 90), 0, 90),
            "max_cloud": ipywidgets.IntSlider(_or(given.max_cloud, 100), 0, 100),
            "max_cloud_land": ipywidgets.IntSlider(_or(given.max_cloud_land, 100), 0, 100),
            "exclude_platforms": ipywidgets.SelectMultiple(options=given.exclude_platforms, rows=3),
            "season": ipywidgets.HBox(
                [ipywidgets.Dropdown(options=[*_numbered(), *more], value=k) for k, more in zip(season, (_SUMMER, ()))]
            ),
            "years_apart": _areas.choice([("any", None), *((str(k), k) for k in range(11))], given.years_apart),
            "max_per_scene": ipywidgets.IntSlider(given.max_per_scene or 0, 0, 30),
            "reference": _areas.choice([("any", None)], None),
        }
        told = {p.name: p for p in parameters(PairRules)}
        lines = []
        for name, made in self.controls.items():
            made.layout.width = "290px"
            made.add_class(f"ogive-pairs-{name.replace('_', '-')}")
            for part in made.children if name == "season" else (made,):
                part.continuous_update = False
                part.layout.width = "50%" if name == "season" else "290px"
                part.tooltip = told[name].help
                part.observe(self.changed, "value")
            unit = f" [{told[name].unit}]" if told[name].unit not in ("", name) else ""
            text = f'<label title="{told[name].help}">{_ENDS.get(name, name.replace("_", " "))}{unit}</label>'
            lines.append(ipywidgets.HBox([ipywidgets.HTML(text, layout={"width": "180px"}), made]))
        self.count = ipywidgets.HTML()
        self.count.add_class("ogive-pair-count")
        self.picture = _areas.Picture("ogive-network", "500px")
        self.widget = ipywidgets.HBox([
            ipywidgets.VBox([*lines, self.notice.widget], layout={"width": "500px"}),
            ipywidgets.VBox([self.count, self.picture.widget], layout={"flex": "1 1 0", "padding": "0 0 0 16px"}),
        ])  # fmt: skip
        session.observe(self.scenes_changed, "chosen")

    def rules(self) -> dict[str, Any]:
        """What the controls say, as `config.pairs`: the fields that are not at their defaults."""
        c = self.controls
        first, last = (part.value for part in c["season"].children)
        found = {
            "days": [float(k) for k in c["days"].value],
            "same_orbit": c["same_orbit"].value,
            "same_sensor": c["same_sensor"].value,
            **{name: float(c[name].value) if c[name].value < c[name].max else None for name in _LIMITS},
            "exclude_platforms": list(c["exclude_platforms"].value),
            "season": first if first == "summer" else [first, last] if first and last else None,
            "years_apart": c["years_apart"].value,
            "max_per_scene": c["max_per_scene"].value or None,
            "reference": c["reference"].value,
        }
        plain = PairRules()
        same = {k: getattr(plain, k) == (tuple(v) if isinstance(v, list) else v) for k, v in found.items()}
        return {k: v for k, v in found.items() if k == "days" or not same[k]}

    @guarded
    def scenes_changed(self, _: Any = None) -> None:
        """Offer the platforms and scenes that there are, and pair them anew."""
        if not self.session.chosen:
            return
        items = chosen_items(self.session)
        platforms = sorted({str(item.properties.get("platform", "")) for item in items} - {""})
        excluded, reference = (self.controls[name] for name in ("exclude_platforms", "reference"))
        without, only = [name for name in excluded.value if name in platforms], reference.value
        self._filling = True
        excluded.options, excluded.value = platforms, without
        reference.options = [("any", None), *((item.id, item.id) for item in items)]
        reference.index = 1 + self.session.chosen.index(only) if only in self.session.chosen else 0
        self._filling = False
        self._pair()

    @guarded
    def changed(self, _: Any = None) -> None:
        """Follow a control."""
        if self.session.chosen and not self._filling:
            self._pair()

    def _pair(self) -> None:
        self.session.configure(pairs=self.rules())
        items = chosen_items(self.session)
        try:
            pairs = make_pairs(items, **self.rules())
        except PairError:
            self.session.pairs, self.count.value = None, "<b>No pair</b>"
            self.picture.clear()
            raise
        self.session.pairs = pairs
        self.count.value = f"<b>{len(pairs)} pairs</b> of {len(items)} scenes"
        self.picture.show(pair_network(pairs))
        # Only now, because the pairs are right even where the cube cannot be opened yet.
        _, velocity = prepare(self.session.config, check=False, items=items, kernel=self.session.kernel)
        self.count.value = f"<b>{len(pairs)} pairs.</b> {explain(velocity)}"


_LIMITS = ("max_sun_difference", "max_cloud", "max_cloud_land")
_ENDS = {"max_per_scene": "max per scene (0: any)", "season": "season, from and to"}


def _or(given: float | None, other: int) -> int:
    return other if given is None else round(given)


def _numbered() -> list[tuple[str, int]]:
    return [(name, k) for k, name in enumerate(_MONTHS)]
