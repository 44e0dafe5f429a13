"""The documentation is true: its Python runs, its commands exist, its links lead somewhere, its lists are complete.

In `README.md` and `docs/*.md` every block tagged `python` (or `python run`) is executed, in order, in one namespace for
each page and in a folder that holds a small `ogive-demo`. The names `og`, `cube` and `pairs` are there, as on the page
before. Of blocks tagged `bash` every line that calls `ogive` must name an existing command with existing options. Other
blocks are only read.
"""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

import ogive as og
from ogive import cli
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import make_world

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [
    *PAGES,
    *(p for p in (ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md") if p.exists()),
]
# The dates and the glacier's id are those of the real demo; slow ice, because the small glacier would shear too much.
SPEC = WorldSpec(
    size_km=(2.4, 3.0), n_sentinel2=6, n_landsat=0, start="2022-05-20", end="2022-09-20",
    cloud=0.0, speed=100.0, wedge=False,
)  # fmt: skip


def blocks(page: Path, *tags: str) -> list[tuple[int, str]]:
    """First line and text of the fenced blocks with one of the tags."""
    text = page.read_text()
    found = []
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if match[1].strip() in tags:
            found.append((text[: match.start()].count("\n") + 2, match[2]))
    return found


def identifier(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "ogive-demo"
    make_world(folder / "world", SPEC)
    return folder


@pytest.fixture
def names(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a page may use; its folder is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ogive-demo").symlink_to(demo_folder)
    cube = og.open_cube(og.search(None, source=demo_folder / "world" / "items.json"))
    return {"__name__": "page", "og": og, "cube": cube, "pairs": og.make_pairs(cube, days=(30, 60))}


def test_there_is_python_to_run() -> None:
    assert sum(len(blocks(page, "python", "python run")) for page in PAGES) >= 4
    assert blocks(ROOT / "README.md", "python", "python run")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python", "python run")], ids=identifier)
def test_python_runs_as_written(page: Path, names: dict[str, Any]) -> None:
    for line, text in blocks(page, "python", "python run"):
        # Empty lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * (line - 1) + text, str(page), "exec"), names)


def commands() -> list[tuple[str, str]]:
    """Page and line of every call of `ogive` in a bash block."""
    found = []
    for page in TEXTS:
        for _, text in blocks(page, "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                if re.match(r"(\.venv/bin/)?ogive ", line.strip()):
                    found.append((identifier(page), line.strip()))
    return found


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 5


@pytest.mark.parametrize(("page", "line"), commands())
def test_command_lines_name_what_exists(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    app: Any = typer.main.get_command(cli.app)
    if words[1].startswith("--"):
        assert words[1] == "--help"
        return
    assert words[1] in app.commands, f"{page}: {line}"
    known = {name for p in app.commands[words[1]].params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    given = {word.partition("=")[0] for word in words[2:] if word.startswith("-") and not re.match(r"-\d", word)}
    assert given <= known, f"{page}: {line}"


def links() -> list[tuple[str, str]]:
    found = []
    for page in TEXTS:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+:", target):
                found.append((identifier(page), target))
    return found


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on the web."""
    titles = re.findall(r"^#+ +(.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("page", "target"), links())
def test_links_lead_somewhere(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists(), f"{page}: {target}"
    assert file.resolve().is_relative_to(ROOT)
    if anchor:
        assert anchor in anchors(file), f"{page}: {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, todo = set(), [ROOT / "README.md"]
    reached = {(p, t.partition("#")[0]) for p, t in links()}
    while todo:
        page = todo.pop()
        if page not in seen:
            seen.add(page)
            todo += [((ROOT / p).parent / t).resolve() for p, t in reached if t.endswith(".md") and ROOT / p == page]
    assert not set(PAGES) - seen


def modules() -> set[str]:
    source = ROOT / "src" / "ogive"
    return {str(p.relative_to(source)) for p in source.rglob("*.py") if p.read_text().strip()}


def test_the_module_table_is_complete() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    listed = re.findall(r"^\| `([\w/]+\.py)` \| \S", text, re.MULTILINE)
    assert len(listed) == len(set(listed)) > 30
    # A package whose __init__ only says what it is for needs no row of its own.
    bare = {
        name
        for name in modules()
        if name.endswith("__init__.py") and "import" not in (ROOT / "src" / "ogive" / name).read_text()
    }
    assert modules() - bare - {"__init__.py"} == set(listed) - bare - {"__init__.py"}


def test_file_and_function_names_in_the_texts_exist() -> None:
    """`tests/test_x.py` and `docs/x.md` that a text points to without a link."""
    named = {
        (identifier(page), name)
        for page in TEXTS
        for name in re.findall(r"`((?:tests|docs|benchmarks|catalogs|notebooks|src)/[\w/.-]+\.\w+)`", page.read_text())
    }
    assert named
    assert {(page, name) for page, name in named if not (ROOT / name).exists()} == set()


def test_extras_that_the_readme_installs_exist() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    asked = {
        e.strip()
        for m in re.findall(r'pip install "\.\[([^\]]+)\]"', (ROOT / "README.md").read_text())
        for e in m.split(",")
    }
    assert asked
    assert asked <= extras
