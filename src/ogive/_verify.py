"""Whether what lies there is what was written: every object against the checksum that the ledger holds."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    import icechunk

from ._growth import coming, settle, take_back
from ._icechunk import Snapshot, reopen
from ._ledger import PLAN, ROOT, TEMPLATE, Books, Plan, accepted, attributes_of, digest, is_done
from ._lock import only_writer
from ._storage import for_all, storage_of
from ._template import being_written
from ._trust import understood
from .errors import StoreError

Fault = tuple[str, str, str]
"""Block, variable or file, problem."""


def verify(path: "str | Path | icechunk.Repository", *, repair: bool = False) -> pd.DataFrame:
    """Read every object back and compare it with the ledger.

    Parameters
    ----------
    path : path, URL or icechunk.Repository
    repair : bool
        Restore metadata and coordinates from the ledger's copy, drop the rows of bad blocks, so that the same `write`
        computes these again and no others, and take leftover temporary files away. An append that was interrupted is
        taken back first. Of a repository, save what is whole for the same `write`, which puts a whole snapshot on main.

    Returns
    -------
    pd.DataFrame
        One row per fault: `block`, `variable` (or object), `problem` ("missing", "checksum", "not done", "failed",
        "leftover file"). `block` is "" for what is not computed in blocks. Empty when the store is whole. Of a store
        that is being extended, its new blocks are "not done".

    Raises
    ------
    StoreError
        Not an ogive store, its ledger is lost, or it is being written by another run (with `repair`).
    """
    books = Books(storage_of(path))
    if repair and isinstance(books.target, Snapshot):
        with books.target.versions.only_writer(), understood(books.target.name, StoreError):
            check = _Check(Books(storage_of(path)))
            if check.faults:
                reopen(books.target, check.plan, check.bad)
        return _table(check.faults)
    with only_writer(books.target) if repair else nullcontext(), understood(books.target.name, StoreError):
        check = _Check(books)
        faults = check.faults
        if repair:
            if check.coming is not None:
                if check.plan_fault:
                    books.put_plan(check.plan)
                settle(books)
                take_back(books)
                check = _Check(books)
            check.repair()
    return _table(faults)


def _table(faults: list[Fault]) -> pd.DataFrame:
    return pd.DataFrame(faults, columns=["block", "variable", "problem"])


class _Check:
    """The faults of a store, and how to mend them."""

    def __init__(self, books: Books) -> None:
        self.books, self.target = books, books.target
        self.plan_fault, self.template_fault = "", ""
        self.objects: dict[str, bytes] = {}
        copy: Plan | None = None
        try:
            copy, self.objects = books.template()
        except FileNotFoundError:
            self.template_fault = "missing"
        except ValueError:
            self.template_fault = "checksum"
        self.plan = self._plan(copy)
        self.coming = coming(books)
        # The last step of an append puts the new template in place: until then the old one is right.
        ours = self.coming if self.coming and self.coming.fingerprint == self.plan.fingerprint else None
        if copy is not None and copy.template != self.plan.template and ours is None:
            self.template_fault = "checksum"
        if self.plan.drafting:
            raise StoreError(
                self.target.name, rule="is not an ogive store yet: making it was interrupted", fix="run the same write"
            )
        books_faults = [(PLAN, self.plan_fault), (TEMPLATE, self.template_fault)]
        self.faults: list[Fault] = [("", f"ledger/{name}", fault) for name, fault in books_faults if fault]
        self.lost = self._templates()
        self.bad = self._blocks()
        self.leftovers = self._leftovers()

    def _plan(self, copy: Plan | None) -> Plan:
        try:
            plan = self.books.plan()
            self.plan_fault = "" if plan else "missing"
        except StoreError:
            if copy is None:
                raise
            plan, self.plan_fault = None, "checksum"
        if plan is None:
            if copy is None:
                attributes_of(self.target)
                raise StoreError(
                    self.target.name, rule="its ledger is missing", value=self.books.place.name,
                    fix="copy it together with the store",
                )  # fmt: skip
            plan = copy
        return plan

    def _problem(self, key: str, *expected: str) -> str:
        try:
            found = digest(self.target.get(key))
        except FileNotFoundError:
            return "missing"
        return "" if found in expected else "checksum"

    def _templates(self) -> list[str]:
        """Objects of the template that are damaged."""
        lost = []

        def check(key: str) -> tuple[str, str]:
            also = [self.plan.unfinished] if key == ROOT else []
            # An append that is killed in its last steps leaves objects of both states; any of them is right.
            also += [self.coming.objects[key]] if self.coming and key in self.coming.objects else []
            return key, self._problem(key, self.plan.objects[key], *also)

        for key, problem in for_all(check, sorted(self.plan.objects), self.target):
            if problem:
                lost.append(key)
                self.faults.append(("", key, problem))
        return lost

    def _blocks(self) -> set[str]:
        """Blocks that are not whole."""
        plan = self.coming or self.plan
        spans = plan.spans()
        rows = {row["block"]: row for row in self.books.rows()}
        bad = set()

        def check(key: str) -> list[Fault]:
            row = rows.get(key)
            problems = {name: self._problem(name, *sums) for name, sums in accepted(row or {}).items()}
            faults = [(key, name.split("/")[0], problem) for name, problem in problems.items() if problem]
            if row is None or not is_done(row, plan, spans):
                faults.append((key, "", "failed" if row and row["status"] == "failed" else "not done"))
            return faults

        for faults in for_all(check, spans, self.target):
            self.faults += faults
            bad |= {key for key, _, _ in faults}
        return bad

    def _leftovers(self) -> list[tuple[Books, str]]:
        found = []
        for storage, prefix in ((self.target, ""), (self.books.place, "ledger/")):
            for key in storage.objects():
                if key.endswith(".partial"):
                    self.faults.append(("", prefix + key, "leftover file"))
                    found.append((storage, key))
        return found  # type: ignore[return-value]

    def repair(self) -> None:
        """Mend what can be mended without computing, and let the next `write` compute the rest."""
        if self.template_fault and not self.lost:
            self.objects = {key: self.target.get(key) for key in self.plan.objects}
        if self.plan_fault:
            self.books.put_plan(self.plan)
        if self.objects and self.template_fault:
            self.plan = self.books.put_template(self.plan, self.objects)
            self.books.put_plan(self.plan)
        for key in [k for k in self.lost if k in self.objects]:
            self.target.put(key, self.objects[key])
        # The root first: a store that lacks a block must not say for a moment that it is complete.
        if self.bad and self.objects:
            self.target.put(ROOT, being_written(self.objects[ROOT]))
        for block in self.bad:
            self.books.drop_row(block)
        for storage, key in self.leftovers:
            storage.delete(key)  # type: ignore[attr-defined]
