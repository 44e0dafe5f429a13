"""The report is one file that needs nothing else; tables say the same in HTML and Markdown."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from ogive.errors import ParameterError, StoreError
from ogive.report import format_value, to_markdown, write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data)


@pytest.fixture
def frame() -> pd.DataFrame:
    out = pd.DataFrame(
        {
            "point": ["upper <b>tongue</b>", "terminus"],
            "pairs": [1204, 18],
            "v": [274.31, np.nan],
            "start": pd.to_datetime(["2019-01-24", "2019-02-03"]),
        }
    )
    out.attrs["units"] = {"v": "m/yr"}
    return out


def figure() -> Figure:
    out = Figure(figsize=(3, 2))
    out.add_subplot().plot([0, 1], [1, 3])
    return out


def write(path: Path, frame: pd.DataFrame, **changes: object) -> str:
    content: dict[str, object] = {
        "title": "Mer de Glace & <others>",
        "summary": ["Faster than 'before'.", "Second fact."],
        "tables": {"Stakes": frame},
        "figures": {'Speed "map"': figure()},
        "provenance": {"ogive": "0.1.0", "parameters": {"chip": 32}, "items": [f"S2A_{i}" for i in range(47)]},
    }
    assert write_report(path, **{**content, **changes}) == path  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def test_page_is_complete_and_escaped(tmp_path: Path, frame: pd.DataFrame) -> None:
    text = write(tmp_path / "report.html", frame)
    page = Page(text)
    assert page.open == []
    assert "Mer de Glace & <others>" in page.texts
    assert "Faster than 'before'." in page.texts
    assert "b" not in {tag for tag, _ in page.tags}
    assert page.cells[0] == ["point", "pairs", "v (m/yr)", "start"]
    assert page.cells[1] == ["upper <b>tongue</b>", "1\u202f204", "274", "2019-01-24"]
    assert page.cells[2] == ["terminus", "18", "–", "2019-02-03"]
    assert ["parameters.chip", "32"] in page.cells
    assert ["items", "47 entries: S2A_0, S2A_1, S2A_2, …"] in page.cells
    numbers = [attrs.get("class") for tag, attrs in page.tags if tag == "td"][:4]
    assert numbers == ["short", "number", "number", "short"]


def test_page_needs_nothing_else(tmp_path: Path, frame: pd.DataFrame) -> None:
    text = write(tmp_path / "report.html", frame)
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"url\(|@import|https?://", text)
    (image,) = [attrs for tag, attrs in page.tags if tag == "img"]
    assert image["alt"] == 'Speed "map"'
    source = str(image["src"])
    assert source.startswith("data:image/png;base64,")
    png = base64.b64decode(source.split(",", 1)[1], validate=True)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) > 2000
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_report_without_tables_and_figures(tmp_path: Path, frame: pd.DataFrame) -> None:
    page = Page(write(tmp_path / "r.html", frame, tables={}, figures={}, provenance={}))
    assert not {"table", "img", "section"} & {tag for tag, _ in page.tags}


def test_bad_input_keeps_the_old_report(tmp_path: Path, frame: pd.DataFrame) -> None:
    path = tmp_path / "r.html"
    before = write(path, frame)
    with pytest.raises(ParameterError, match="at least one sentence"):
        write(path, frame, summary=[])
    with pytest.raises(AttributeError):
        write(path, frame, figures={"broken": object()})
    assert path.read_text(encoding="utf-8") == before
    assert write(path, frame, title="New") != before
    with pytest.raises(ParameterError, match=r"\.html"):
        write(tmp_path / "r.pdf", frame)
    with pytest.raises(StoreError, match="folder must exist"):
        write(tmp_path / "no" / "r.html", frame)


def test_markdown_is_a_github_table(frame: pd.DataFrame) -> None:
    lines = to_markdown({"Stakes": frame}).splitlines()
    assert lines[:2] == ["### Stakes", ""]
    table = lines[2:]
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1
    assert [c.strip() for c in table[0].strip("|").split("|")] == ["point", "pairs", "v (m/yr)", "start"]
    assert re.fullmatch(r"\| :-+ \| -+: \| -+: \| :-+ \|", table[1])
    assert table[2].startswith("| upper <b>tongue</b> |")


def test_markdown_keeps_a_named_index_and_its_units(frame: pd.DataFrame) -> None:
    text = to_markdown(frame.set_index("point")[["v"]])
    assert text.splitlines()[0].split() == ["|", "point", "|", "v", "(m/yr)", "|"]
    assert "terminus" in text
    counted = to_markdown(pd.DataFrame({"v": [1.0]}, index=["only"]))
    assert "only" in counted


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_markdown_cells_never_break_the_table(cell: str) -> None:
    rows = to_markdown(pd.DataFrame({"a": [cell], "b": [1]})).split("\n")
    assert len(rows) == 3
    assert len(re.findall(r"(?<!\\)\|", rows[2])) == 3


@given(st.floats(-1e11, 1e11).filter(lambda v: v == 0 or abs(v) > 1e-5), st.integers(2, 6))
def test_numbers_keep_their_digits(value: float, digits: int) -> None:
    text = format_value(value, digits=digits)
    back = float(text.replace("\u202f", ""))
    assert back == pytest.approx(value, rel=0.5001 * 10.0 ** (1 - digits), abs=1e-12)
    assert "e" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (9.996, "10.0"),
        (99.96, "100"),
        (999.6, "1\u202f000"),
        (1234.5, "1\u202f234"),
        (-3.14159, "-3.14"),
        (3e-9, "3.00e-09"),
        (float("inf"), "∞"),
        (float("-inf"), "-∞"),
        (np.float32(0.5), "0.500"),
        (np.int64(1234567), "1\u202f234\u202f567"),
        (np.bool_(False), "no"),
        (None, "–"),
        (pd.NaT, "–"),
        (pd.NA, "–"),
        (np.datetime64("NaT"), "–"),
        (np.datetime64("2020-01-02T03:04"), "2020-01-02 03:04"),
        ("text", "text"),
    ],
)
def test_values(value: object, text: str) -> None:
    assert format_value(value) == text
