"""The image: what it copies is in the repository, what it installs is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_image_copies_and_installs_what_exists() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    assert {"pyproject.toml", "src", "catalogs"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    (extras,) = re.findall(r'pip install[^"]*"\.\[([a-z0-9,]+)\]"', text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (python,) = re.findall(r"^FROM python:(\d+\.\d+)", text, re.M)
    assert tuple(map(int, python.split("."))) >= (3, 11)
