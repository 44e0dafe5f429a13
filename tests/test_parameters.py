"""Every parameter that can be set says what it means, and a session's run file is the run file that was meant."""

import inspect
from pathlib import Path
from typing import Any

import pytest

import ogive as og
from ogive import filters, run, runfile
from ogive.errors import SearchError
from ogive.kernels import KERNELS
from ogive.parameters import Parameter, parameters
from ogive.summary import FILTERS
from ogive.testing.runs import counted_run, run_file

SOURCES: dict[str, Any] = {
    **KERNELS,
    **{name: getattr(filters, name) for name in FILTERS},
    "pairs": og.PairRules,
    **{kind.__name__: kind for kind in (run.SearchSection, run.CubeSection, run.StableSection, run.InvertSection)},
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_parameter_has_a_help_of_its_own(name: str) -> None:
    found = parameters(SOURCES[name])
    assert found
    for parameter in found:
        assert len(parameter.help) > 10, parameter.name
        assert "As for" not in parameter.help
        assert "As in" not in parameter.help


@pytest.mark.parametrize("name", KERNELS)
def test_defaults_and_choices_are_those_of_the_class(name: str) -> None:
    kind: Any = KERNELS[name]
    found = {p.name: p for p in parameters(kind)}
    assert kind(**{p.name: p.default for p in found.values()}) == kind()
    for parameter in found.values():
        # These two have rules of their own with the other defaults, or the machine.
        for choice in () if parameter.name in ("refine", "backend") else parameter.choices:
            assert getattr(kind(**{parameter.name: choice}), parameter.name) == choice


def test_units_and_kinds() -> None:
    found = {p.name: p for p in parameters(og.NCC)}
    assert (found["search"].unit, found["search"].kind) == ("px", int)
    assert found["min_correlation"].unit == ""  # [1] is none
    assert "orientation" in found["enhance"].choices
    assert {p.name: p.unit for p in parameters(og.PairRules)}["max_sun_difference"] == "degrees"


def test_a_function_without_defaults() -> None:
    def shift(image: int, by: float) -> None:
        """Shift.

        Parameters
        ----------
        image : int
            What is shifted.
        by : float
            How far [m].
            A second line.

        Returns
        -------
        None
            Not a parameter.
        """

    empty = inspect.Parameter.empty
    assert parameters(shift) == [
        Parameter("image", empty, int, "What is shifted."),
        Parameter("by", empty, float, "How far [m]. A second line.", "m"),
    ]


def test_a_session_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = run.RunConfig(
        title="Aletsch: 2022, #1", output=str(tmp_path / "out"),
        search={"aoi": {"type": "Point", "coordinates": [8.0, 46.5]}, "max_cloud": 40, "leave_out": ["a", "b"]},
        pairs={"days": [[10, 20], [330, 400]], "season": [6, 10]},
        kernel={"name": "ncc", "chip": [24, 48]},
        filters={"local_median": {}, "correlation": {"minimum": 0.5}},
        invert=None, points={"front": (1.5, 2.5)}, profile=[(0.0, 1.0), (2.0, 3.0)],
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(runfile.dump(config))
    assert run.load(tmp_path / "run.yaml") == config
    assert run.load(tmp_path / "run.yaml").make_kernel() == og.NCC(chip=(24, 48))
    (tmp_path / "empty.yaml").write_text(runfile.dump(run.RunConfig()))
    assert run.load(tmp_path / "empty.yaml") == run.RunConfig().model_copy(update={"output": "velocity"})


def test_scenes_that_are_left_out(tmp_path: Path) -> None:
    dates = ["2021-07-01", "2021-07-11", "2021-07-21"]
    with counted_run():
        path = run_file(tmp_path / "run", dates)
        every = [item.id for item in run.find(run.load(path))]
        source = str(path.parent / "items.json")
        path = run_file(tmp_path / "run", dates, search={"source": source, "leave_out": every[:1]})
        assert [item.id for item in run.find(run.load(path))] == every[1:]
        path = run_file(tmp_path / "run", dates, search={"source": source, "leave_out": every})
        with pytest.raises(SearchError, match="leaves no scene"):
            run.find(run.load(path))
