"""A store that is being extended: its next state, and how that becomes the present one, or is taken back.

    next.json, next.zip    plan and template of the extended store, from the first new block until the last step

New pairs follow the old ones, so an object of the extended store says of the old pairs what it said before: readers see
the old pairs, whatever is done to the blocks, until one write of the root object shows all new ones. A batch that the
old pairs left incomplete is filled up: its row then says "growing", and that each object is the old one or the new one.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._ledger import NEXT, NEXT_TEMPLATE, ROOT, TEMPLATE, Books, Plan, accepted, digest, is_done
from ._storage import for_all
from ._template import decoded
from .errors import StoreError

APPENDED = "appended"
"""The part of the provenance that lists the extensions of a store."""


def coming(books: Books) -> Plan | None:
    """The plan that a store is being extended to; from its copy if it is damaged."""
    try:
        return books.plan(NEXT)
    except StoreError:
        return books.template(NEXT_TEMPLATE)[0]


def settle(books: Books) -> None:
    """Finish an extension of which nothing but the last steps is missing."""
    plan, current = coming(books), books.plan()
    if plan is None or current is None:
        books.place.delete(NEXT_TEMPLATE)
        return
    if current.fingerprint == plan.fingerprint or len(books.done(plan)) == plan.count:
        publish(books, plan)


def publish(books: Books, plan: Plan) -> None:
    """Make the next state the present one; each step may be the last of a process that is killed."""
    _, objects = books.template(NEXT_TEMPLATE)
    current = books.plan()
    assert current is not None
    if current.fingerprint != plan.fingerprint:
        # Readers take all metadata from the root; old ones find what they know in the longer coordinates.
        changed = [key for key in objects if key != ROOT and current.objects.get(key) != plan.objects[key]]
        for_all(lambda key: books.target.put(key, objects[key]), changed, books.target)
        books.target.put(ROOT, objects[ROOT])
        books.put_plan(plan)
    books.place.put(TEMPLATE, books.place.get(NEXT_TEMPLATE))
    _forget(books)


def take_back(books: Books) -> Plan:
    """Undo an extension that is not finished, without computing anything; the plan of what remains."""
    plan, grown_plan = books.plan(), coming(books)
    assert plan is not None
    if grown_plan is None:
        return plan
    spans = plan.spans()
    for key in sorted(grown_plan.objects.keys() - plan.objects.keys()):
        books.target.delete(key)
    changed = {key: sums for key, sums in _sums(plan).items() if _whole(books, {key: sums})[1]}
    for key in sorted(changed, reverse=True):  # the root is the last one
        books.target.put(key, books.template()[1][key])
    for row in books.rows():
        if row["block"] in spans and not is_done(row, plan, spans):
            _shrink(books, plan, row, spans[row["block"]])
    for block in [key for key in grown_plan.spans() if key not in spans]:
        place = "/".join(["c", *block.split(".")])
        for_all(lambda name, place=place: books.target.delete(f"{name}/{place}"), _blocked(plan), books.target)  # type: ignore[misc]
        books.drop_row(block)
    _forget(books)
    return plan


def grown(
    books: Books, plan: Plan, row: dict[str, Any], values: dict[str, NDArray[Any]], pairs: int
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """A whole batch out of its old pairs, read back and checked, and new ones.

    Parameters
    ----------
    books : Books
    plan : Plan
        Of the extended store.
    row : dict
        `block`, its new `span`, and `kept`: checksums that its objects may have.
    values : dict of (pairs, y, x) arrays
        New pairs by variable.
    pairs : int
        Pairs of the store before.

    Returns
    -------
    values, checksums
        All pairs of the block by variable; the objects that the old ones were read from.

    Raises
    ------
    StoreError
        What is there is not what was written.
    """
    first, span = plan.dims[0], row["span"]
    objects, problem = _whole(books, row["kept"])
    if problem:
        raise StoreError(
            books.target.name, rule=f"block {row['block']} cannot be extended", value=problem,
            fix="ogive verify --repair, then compute that block again",
        )  # fmt: skip
    old = decoded(plan.metadata, objects, {**span, first: [span[first][0], pairs]})
    whole = {name: np.concatenate([old[name], new.astype(old[name].dtype)]) for name, new in values.items()}
    return whole, {key: digest(data) for key, data in objects.items()}


def _shrink(books: Books, plan: Plan, row: dict[str, Any], span: dict[str, list[int]]) -> None:
    """The row of a block that was to be extended, as before: its old pairs are in the objects, old or new."""
    objects, problem = _whole(books, accepted(row))
    if problem:
        books.drop_row(row["block"])
        return
    sums = {key: digest(data) for key, data in sorted(objects.items())}
    left: dict[str, Any] = {k: row[k] for k in ("block", "seconds", "peak_mb") if k in row}
    books.put_row({**left, "span": span, "job": plan.job, "status": "done", "objects": sums})


def _whole(books: Books, sums: dict[str, list[str]]) -> tuple[dict[str, bytes], str]:
    """The objects of a block, or what is wrong with them."""
    objects = {}
    for key, expected in sums.items():
        try:
            objects[key] = books.target.get(key)
        except FileNotFoundError:
            return {}, f"{key} is missing"
        if digest(objects[key]) not in expected:
            return {}, f"{key} has another checksum"
    return objects, "" if objects else "its row in the ledger is missing"


def _sums(plan: Plan) -> dict[str, list[str]]:
    """Checksums of what is not written in blocks; a root that says "being written" is right as well."""
    return {key: [found, plan.unfinished] if key == ROOT else [found] for key, found in plan.objects.items()}


def _blocked(plan: Plan) -> list[str]:
    """The variables that are written in blocks."""
    arrays = plan.metadata["consolidated_metadata"]["metadata"]
    return [name for name, about in arrays.items() if tuple(about.get("dimension_names") or ()) == plan.dims]


def _forget(books: Books) -> None:
    books.place.delete(NEXT)
    books.place.delete(NEXT_TEMPLATE)
