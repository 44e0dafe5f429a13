"""What mkdocs does not do by itself: equations without a script, and the pages and notebooks beside `docs` in the site.

Equations become MathML when the site is built, which every browser shows without help; nothing is fetched when a page
is viewed. Links keep the form that works in the repository.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
BESIDE = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and notebooks that lie beside `docs`."""
    for path in (*(ROOT / name for name in BESIDE), *sorted((ROOT / "notebooks").glob("*.ipynb"))):
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site needs them, where everything lies in one folder."""
    inside = page.file.src_uri not in BESIDE
    return re.sub(r"\]\(\.\./" if inside else r"\]\((?:docs/)?(?!\w+:|#)", "](", markdown)


def on_page_content(content: str, **_: Any) -> str:
    r"""`\(...\)` and `\[...\]`, as the Markdown extension leaves them, in MathML."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
        lambda m: convert(html.unescape(m[2]).strip(), display="block" if m[1] == "div" else "inline"),
        content,
        flags=re.DOTALL,
    )
