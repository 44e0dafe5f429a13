"""The documentation as a site: complete, without a request to anywhere else, its equations drawn without a script."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib import image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """What a browser fetches to show a page, its links, equations and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.equations = 0
        self.text = ""
        self.within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.links.append(given.get("href", ""))
        elif not (tag == "link" and given.get("rel") in ("canonical", "prev", "next")):
            self.fetched += [given[name] for name in ("src", "href", "data", "poster") if name in given]
        self.equations += tag == "math"
        if tag in ("code", "math", "pre", "script", "style"):
            self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.within and tag == self.within[-1]:
            self.within.pop()

    def handle_data(self, data: str) -> None:
        if not self.within:
            self.text += data


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {str(p.relative_to(site)): Page(p.read_text()) for p in sorted(site.rglob("*.html"))}


def test_every_page_has_a_place_in_the_navigation() -> None:
    def leaves(node: Any) -> list[str]:
        if isinstance(node, str):
            return [node]
        return [leaf for part in (node.values() if isinstance(node, dict) else node) for leaf in leaves(part)]

    listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(listed) == len(set(listed))
    assert {p.name for p in DOCS.glob("*.md")} <= set(listed)


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) > 20
    for name, page in pages.items():
        assert page.fetched, name
        assert [a for a in page.fetched if re.match(r"(\w+:)?//", a)] == [], name
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", sheet.read_text())
        assert [a for a in addresses if re.match(r"(https?:)?//", a)] == [], sheet.name


def test_equations_are_mathml(pages: dict[str, Page]) -> None:
    text = (DOCS / "algorithms.md").read_text()
    displayed = text.count("$$") // 2
    inline = len(re.findall(r"(?<!\$)\$(?!\$)[^$]+\$(?!\$)", re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)))
    assert displayed >= 5
    assert pages["algorithms/index.html"].equations == displayed + inline
    for name, page in pages.items():
        assert "$$" not in page.text, name
        assert "\\[" not in page.text, name


def test_no_markdown_is_left_in_a_page(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        assert "```" not in page.text, name
        assert "](" not in page.text, name
        assert not re.search(r"^\|", page.text, re.MULTILINE), name


def test_pages_and_notebooks_beside_the_folder_are_there(site: Path, pages: dict[str, Page]) -> None:
    assert {"ARCHITECTURE/index.html", "SECURITY/index.html"} <= set(pages)
    linked = {link.rpartition("/")[2] for link in pages["notebooks/index.html"].links if link.endswith(".ipynb")}
    assert linked >= {"quickstart.ipynb", "spring_speed.ipynb", "annual_velocities.ipynb", "reading_stores.ipynb"}
    for name in linked:
        assert (site / "notebooks" / name).read_bytes() == (ROOT / "notebooks" / name).read_bytes()


@pytest.mark.slow
def test_figures_come_from_their_script(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    made = figures.write(tmp_path, tmp_path)
    shown = "".join(p.read_text() for p in (*DOCS.glob("*.md"), ROOT / "README.md"))
    for path in made:
        assert f"images/{path.name}" in shown
        kept, new = image.imread(DOCS / "images" / path.name), image.imread(path)
        assert kept.shape == new.shape
        # Fonts and drawing differ a little between versions of matplotlib.
        assert abs(kept - new).mean() < 0.02
