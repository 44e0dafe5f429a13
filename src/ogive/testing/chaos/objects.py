"""Objects of a finished store that are lost, torn, flipped, garbled or swapped."""

import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ..._ledger import PLAN, TEMPLATE, ledger
from ..._verify import verify
from ...store import write
from ..stores import COMPUTED, contents, lazy_velocity
from . import Row

AT_ONCE = 20
"""Objects damaged before the store is verified."""
Fault = tuple[str, str, str]


def damaged_objects(short: bool, seed: int) -> Row:
    """Each kind of damage to objects of every sort; `verify`, `repair` and the same line must bring all bytes back."""
    count = 30 if short else 1000
    shape, chunks = ((2, 20, 48), (1, 10, 12)) if short else ((4, 40, 48), (1, 10, 12))
    log = logging.getLogger("ogive")
    level, start = log.level, time.perf_counter()
    log.setLevel(logging.ERROR)  # every damaged row is worth a warning, thousands are not
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = _Store(Path(folder, "v.zarr"), shape, chunks, random.Random(seed))
            outcomes: Counter[str] = Counter()
            for name, damage in DAMAGES.items():
                outcomes += store.suffer(name, damage, count)
    finally:
        log.setLevel(level)
    good = {*(f"{name}: found and mended" for name in DAMAGES), "blocks computed again"}
    return Row(
        f"objects damaged, {count} of each kind", count * len(DAMAGES), outcomes,
        "all found, 0 false alarms, only those computed again", outcomes.keys() <= good,
        time.perf_counter() - start, seed,
    )  # fmt: skip


class _Store:
    """A finished store, its good bytes, and what `verify` must say of each object."""

    def __init__(
        self, path: Path, shape: tuple[int, int, int], chunks: tuple[int, int, int], draw: random.Random
    ) -> None:
        self.path, self.draw, self.ds = path, draw, lazy_velocity(shape, chunks)
        write(self.ds, path, progress=False, workers=2)
        self.good, self.books = contents(path), self._books()
        block_of = {name: row["block"] for row in ledger(path) for name in row["objects"]}
        self.files: dict[Path, tuple[str, str]] = {}
        """Block and name, as `verify` says them, of every object."""
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            key = file.relative_to(path).as_posix()
            block = block_of.get(key, "")
            self.files[file] = (block, key.split("/")[0] if block else key)
        for file in sorted(self._beside.iterdir()):
            own = file.name in (PLAN, TEMPLATE)
            self.files[file] = ("", f"ledger/{file.name}") if own else (file.name.removesuffix(".json"), "")

    @property
    def _beside(self) -> Path:
        return self.path.with_name(self.path.name + ".ledger")

    def _books(self) -> tuple[bytes, bytes]:
        return (self._beside / PLAN).read_bytes(), (self._beside / TEMPLATE).read_bytes()

    def suffer(self, name: str, damage: "Damage", count: int) -> Counter[str]:
        """Damage objects in batches until `count` are, and mend each batch."""
        outcomes: Counter[str] = Counter()
        while (done := outcomes[f"{name}: found and mended"] + outcomes[f"{name}: MISSED"]) < count:
            expected: list[Fault] = []
            for files in self._victims(damage.arity, min(AT_ONCE, count - done), damage.of):
                before = [file.read_bytes() for file in files]
                damage.do(files, before, self.draw)
                for file in files:
                    block, what = self.files[file]
                    problem = ("missing" if not file.exists() else "checksum") if what else "not done"
                    expected.append((block, what, problem))
            outcomes += self._mend(name, expected, damage.arity)
        return outcomes

    def _victims(self, arity: int, wanted: int, of: Callable[[Path], bool]) -> list[list[Path]]:
        """Objects that no other damage of the batch hides: one per block, and one of all that is no block."""
        pool = [file for file in self.files if of(file)]
        self.draw.shuffle(pool)
        chosen = list({self.files[file][0]: file for file in pool}.values())[: wanted * arity]
        groups = [chosen[k : k + arity] for k in range(0, len(chosen) - arity + 1, arity)]
        return [group for group in groups if len({file.read_bytes() for file in group}) == arity]

    def _mend(self, name: str, expected: list[Fault], arity: int) -> Counter[str]:
        found = [tuple(fault) for fault in verify(self.path).itertuples(index=False, name=None)]
        verify(self.path, repair=True)
        COMPUTED.clear()
        write(self.ds, self.path, progress=False, workers=1)
        computed = sorted(".".join(map(str, index)) for index in COMPUTED)
        outcomes: Counter[str] = Counter()
        missed, alarms = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
        mended = (
            computed == sorted({block for block, _, _ in expected if block})
            and contents(self.path) == self.good
            and self._books() == self.books
        )
        right = len(expected) // arity if not missed and mended else 0
        outcomes[f"{name}: found and mended"] = right
        outcomes[f"{name}: MISSED"] = len(expected) // arity - right
        outcomes[f"{name}: FALSE ALARMS"] = sum(alarms.values())
        outcomes["blocks computed again"] = len(computed)
        return outcomes


class Damage:
    """One kind of damage.

    Parameters
    ----------
    do : callable
        `do(files, their_bytes, random)`
    arity : int
        Files that it takes.
    of : callable
        Which files it may hit.
    """

    def __init__(
        self, do: Callable[[list[Path], list[bytes], random.Random], None], arity: int = 1,
        of: Callable[[Path], bool] = lambda file: True,
    ) -> None:  # fmt: skip
        self.do, self.arity, self.of = do, arity, of


def _lose(files: list[Path], data: list[bytes], draw: random.Random) -> None:
    files[0].unlink()


def _tear(files: list[Path], data: list[bytes], draw: random.Random) -> None:
    files[0].write_bytes(data[0][: draw.choice([0, draw.randrange(len(data[0]))])])


def _flip(files: list[Path], data: list[bytes], draw: random.Random) -> None:
    byte, bit = draw.randrange(len(data[0])), draw.randrange(8)
    files[0].write_bytes(data[0][:byte] + bytes([data[0][byte] ^ 1 << bit]) + data[0][byte + 1 :])


def _garble(files: list[Path], data: list[bytes], draw: random.Random) -> None:
    """Cut off, overwritten with noise, emptied to valid JSON, or a number in it changed: still valid, and wrong."""
    whole = data[0]
    at = draw.randrange(len(whole))
    digits = [k for k, byte in enumerate(whole) if 48 <= byte < 58]
    other = draw.choice(digits) if digits else at
    choices = [
        whole[:at],
        whole[:at] + draw.randbytes(8) + whole[at + 8 :],
        b"{}",
        whole[:other] + bytes([48 + (whole[other] - 47) % 10]) + whole[other + 1 :],
        whole + b"\n",
    ]
    files[0].write_bytes(draw.choice([garbled for garbled in choices if garbled != whole]))


def _swap(files: list[Path], data: list[bytes], draw: random.Random) -> None:
    files[0].write_bytes(data[1])
    files[1].write_bytes(data[0])


DAMAGES = {
    "missing": Damage(_lose),
    "torn": Damage(_tear),
    "bit flipped": Damage(_flip),
    "metadata garbled": Damage(_garble, of=lambda file: file.suffix in (".json", ".zip")),
    "swapped": Damage(_swap, arity=2),
}
