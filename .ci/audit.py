"""The installed packages that ogive needs, directly or not: none with a fault that advisories.toml knows.

Works without a network. Prints what it looked at; exit code 1 if a package is too old, or does not fit what another
one requires (an environment that no resolver would have made).
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def closure(root: str, extras: set[str]) -> tuple[dict[str, str], list[str]]:
    """Installed packages below a root, name -> version, and the requirements that they do not meet.

    Extras that are not installed are left out; a requirement without an extra must be there.
    """
    found: dict[str, str] = {}
    unmet: list[str] = []
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(canonicalize_name(root), frozenset(extras))]
    while todo:
        name, wanted = node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        package = distribution(name)
        found[name] = package.version
        for requirement in map(Requirement, package.requires or ()):
            needed = [e for e in ("", *wanted) if not requirement.marker or requirement.marker.evaluate({"extra": e})]
            if not needed:
                continue
            try:
                version = distribution(requirement.name).version
            except PackageNotFoundError:
                unmet += [f"{name} needs {requirement}, which is not installed"] if "" in needed else []
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                unmet.append(f"{name} needs {requirement}, and {version} is installed")
            todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found, unmet


def faults(found: dict[str, str], minimum: dict[str, list[str]]) -> list[str]:
    """Packages older than the first version without a known fault."""
    return [
        f"{name} {version}: {minimum[name][1]}, mended in {minimum[name][0]}"
        for name, version in sorted(found.items())
        if name in minimum and Version(version) < Version(minimum[name][0])
    ]


def main() -> int:
    """Look at the environment of this interpreter."""
    known = tomllib.loads(Path(__file__).with_name("advisories.toml").read_text())
    extras = {"stackstac", "search", "s3", "icechunk", "gateway", "hub", "netcdf", "test", "docs", "interop"}
    found, unmet = closure("ogive", extras)
    bad = faults(found, known["minimum"])
    covered = len(known["minimum"].keys() & found.keys())
    sys.stdout.write(f"{len(found)} packages, {covered} of them in the advisories of {known['listed']}\n")
    for line in (*bad, *unmet):
        sys.stdout.write(line + "\n")
    return int(bool(bad or unmet))


if __name__ == "__main__":
    sys.exit(main())
