"""The loops that the compiler does not find by itself: sums of products over chips, sixteen chips at a time.

Nine tenths of all multiplications of a matching run are here. Written as plain loops they need a run-time check of
every pair of pointers, which the vectoriser refuses; written as vectors of LLVM `block_sums` runs near the processor's
rate of fused multiply-adds. Sums over every place of a chip (`column_sums`, `row_correlations`) are streams: a value
goes in, the sum over the last of them comes out, and the sums of half the width that it is made of wait in registers.
Every sum is made by the same instructions in the same order, so there is no remainder loop with other rounding.
"""

from itertools import count as integers
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Chips or blocks summed at a time: one register of AVX-512, two of AVX2, four of NEON."""
TURN = 8
"""Rows that `column_sums` takes at a time. What is no more rows back stays in registers, and more have no room."""
_INDEX = ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)


def _number(value: int) -> Any:
    return ir.Constant(_INDEX, value)


def _memory(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, Any]:
    """What loads sixteen values from an index on of the k-th argument, a flat array, and what stores them there."""

    data = {
        k: context.make_array(kind)(context, builder, arguments[k]).data
        for k, kind in enumerate(signature.args)
        if isinstance(kind, types.Array)
    }

    def pointer(k: int, index: Any) -> Any:
        return builder.bitcast(builder.gep(data[k], [index]), _VECTOR.as_pointer())

    def load(k: int, index: Any) -> Any:
        value = builder.load(pointer(k, index))
        value.align = 4
        return value

    def store(k: int, index: Any, value: Any) -> None:
        builder.store(value, pointer(k, index)).align = 4

    return load, store


@intrinsic
def _block_sums(
    typing_context: Any,
    a: Any,
    at_a: Any,
    plane_a: Any,
    row_a: Any,
    b: Any,
    at_b: Any,
    plane_b: Any,
    row_b: Any,
    phase: Any,
    out: Any,
    at_out: Any,
    row_out: Any,
    block: Any,
    group: Any,
) -> Any:
    """`out[at_out + j row_out + lane] = sum of a * b` over one block, for the displacements j = 0, 1, ... along x.

    `a` and `b` are flat images in polyphase order: pixel (y, w I + p) lies at `p plane + y row + I`, so neighbouring
    blocks are neighbours in memory. `at_a` is the first row of the blocks; `at_b + (phase + j)` pixels is the first
    pixel in image 2. The lengths of the tuples `block` and `group` are the block's width w and the number of
    displacements, constants for the compiler. All other arguments are uint64.
    """
    width, count = len(block), len(group)
    signature = types.void(
        a, at_a, plane_a, row_a, b, at_b, plane_b, row_b, phase, out, at_out, row_out, block, group
    )  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        load, store = _memory(context, builder, signature, arguments)
        _, at_a, plane_a, row_a, _, at_b, plane_b, row_b, phase, _, at_out, row_out = arguments[:12]
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{LANES}f32"
        )

        def place(shift: int) -> Any:
            """Where pixel `phase + shift` of image 2 lies: its plane, and the block that it belongs to."""
            x = builder.add(phase, _number(shift))
            plane = builder.mul(builder.urem(x, _number(width)), plane_b)
            return builder.add(at_b, builder.add(plane, builder.udiv(x, _number(width))))

        places = [place(shift) for shift in range(width + count - 1)]
        sums = [cgutils.alloca_once_value(builder, _ZERO) for _ in range(count)]
        with cgutils.for_range(builder, _number(width)) as loop:
            y_a, y_b = builder.mul(row_a, loop.index), builder.mul(row_b, loop.index)
            total = [builder.load(s) for s in sums]
            second: list[Any] = []
            for k in range(width):
                first = load(0, builder.add(builder.add(at_a, builder.mul(plane_a, _number(k))), y_a))
                for j in range(count):
                    if k + j == len(second):
                        second.append(load(4, builder.add(places[k + j], y_b)))
                    total[j] = builder.call(multiply_add, [first, second[k + j], total[j]])
            for s, value in zip(sums, total, strict=True):
                builder.store(value, s)
        for j, s in enumerate(sums):
            store(9, builder.add(at_out, builder.mul(row_out, _number(j))), builder.load(s))
        return context.get_dummy_value()

    return signature, generate


class _Stream:
    """The latest vectors of a stream, in registers from one turn of a loop to the next."""

    def __init__(self, builder: Any, length: int) -> None:
        self.builder, self.seen = builder, list[Any]()
        self.kept = [cgutils.alloca_once_value(builder, _ZERO) for _ in range(length)]

    def begin(self) -> None:
        """Begin a turn: `seen` is what came before, to which the turn appends."""
        self.seen = [self.builder.load(slot) for slot in self.kept]

    def end(self) -> None:
        """Keep the last for the next turn."""
        for slot, value in zip(self.kept, self.seen[-len(self.kept) :], strict=True):
            self.builder.store(value, slot)


def _widths(chip: int) -> list[int]:
    """Widths of the sums that lead to a chip's, each of two of half the width and, if odd, a single value."""
    return [chip >> k for k in range(chip.bit_length() - 2, -1, -1)]


def _delays(chip: int) -> list[int]:
    """How far back `_box` looks, on one stream after the other."""
    return [n for width in _widths(chip) for n in (width // 2, *(1,) * (width % 2))]


def _box(builder: Any, value: Any, chip: int, before: Any) -> Any:
    """Sum of the last `chip` values, of which `value` is the latest.

    `before(k, x)` takes the next x of stream k and returns the one that came `_delays(chip)[k]` before.
    """
    total, streams = value, integers()
    for width in _widths(chip):
        total = builder.fadd(before(next(streams), total), total)
        if width % 2:
            total = builder.fadd(before(next(streams), total), value)
    return total


@intrinsic
def _column_sums(
    typing_context: Any,
    a: Any,
    at_a: Any,
    row_a: Any,
    b: Any,
    at_b: Any,
    row_b: Any,
    turns: Any,
    work: Any,
    chip: Any,
    out: Any,
    at_out: Any,
    row_out: Any,
) -> Any:
    """`out[at_out + y row_out + lane] = sum of a * b` over rows y, y + 1, ... of a chip, for y = 0, 1, ...

    `turns` is how many times TURN rows are multiplied; they are fewer than chips from before y = 0 on, where up to
    TURN - 1 rows of no meaning are written. `work` has room for sixteen values of each of these rows, and of as many as
    the chip has, for each doubling. The length of the tuple `chip` is the chip's width, a constant for the compiler.
    """
    width = len(chip)
    signature = types.void(a, at_a, row_a, b, at_b, row_b, turns, work, chip, out, at_out, row_out)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        load, store = _memory(context, builder, signature, arguments)
        _, at_a, row_a, _, at_b, row_b, turns, _, _, _, at_out, row_out = arguments
        delays = _delays(width)
        near = {k: _Stream(builder, n) for k, n in enumerate(delays) if n <= TURN}
        far = [k for k in range(len(delays)) if k not in near]

        def turn(index: Any, complete: bool) -> None:
            for stream in near.values():
                stream.begin()
            for j in range(TURN):
                y = builder.add(builder.mul(index, _number(TURN)), _number(j))

                def before(k: int, x: Any, y: Any = y) -> Any:
                    if k in near:
                        near[k].seen.append(x)
                        return near[k].seen[-1 - delays[k]]
                    row = builder.mul(builder.add(y, _number(width)), _number(LANES * len(far)))
                    here = builder.add(row, _number(LANES * far.index(k)))
                    store(7, here, x)
                    return load(7, builder.sub(here, _number(LANES * len(far) * delays[k])))

                first = load(0, builder.add(at_a, builder.mul(y, row_a)))
                second = load(3, builder.add(at_b, builder.mul(y, row_b)))
                total = _box(builder, builder.fmul(first, second), width, before)
                if complete:
                    row = builder.sub(y, _number(width - 1))
                    store(9, builder.add(at_out, builder.mul(row, row_out)), total)
            for stream in near.values():
                stream.end()

        early = _number((width - 1) // TURN)
        with cgutils.for_range(builder, early) as loop:
            turn(loop.index, complete=False)
        with cgutils.for_range(builder, builder.sub(turns, early)) as loop:
            turn(builder.add(early, loop.index), complete=True)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _row_correlations(
    typing_context: Any,
    sums: Any,
    at: Any,
    chip: Any,
    one: Any,
    at_one: Any,
    gap_one: Any,
    two: Any,
    at_two: Any,
    gap_two: Any,
    out: Any,
    at_out: Any,
    vectors: Any,
) -> Any:
    """Correlations of sixteen times `vectors` points in a row, from column sums.

    A chip's last column is `lead(chip)` columns after `at` and its point. `one` and `two` hold the means of images 1
    and 2 at the points, and a gap further on the inverses: c = (ab - a b) * (inverse a * inverse b), as in
    `_ncc_numba.clean`. The length of the tuple `chip` is the chip's width, a constant for the compiler.
    """
    width = len(chip)
    signature = types.void(sums, at, chip, one, at_one, gap_one, two, at_two, gap_two, out, at_out, vectors)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        load, store = _memory(context, builder, signature, arguments)
        _, at, _, _, at_one, gap_one, _, at_two, gap_two, _, at_out, vectors = arguments
        delays = _delays(width)
        streams = [_Stream(builder, -(-n // LANES)) for n in delays]

        def before(k: int, x: Any) -> Any:
            seen = streams[k].seen
            seen.append(x)
            whole, part = divmod(delays[k], LANES)
            if part == 0:
                return seen[-1 - whole]
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [LANES - part + i for i in range(LANES)])
            return builder.shuffle_vector(seen[-2 - whole], seen[-1 - whole], lanes)

        def turn(index: Any) -> Any:
            for stream in streams:
                stream.begin()
            total = _box(builder, load(0, builder.add(at, builder.mul(index, _number(LANES)))), width, before)
            for stream in streams:
                stream.end()
            return total

        early = _number(lead(width) // LANES)
        with cgutils.for_range(builder, early) as loop:
            turn(loop.index)
        with cgutils.for_range(builder, vectors) as loop:
            total = turn(builder.add(early, loop.index))
            x = builder.mul(loop.index, _number(LANES))
            first, second = builder.add(at_one, x), builder.add(at_two, x)
            means = builder.fmul(load(3, first), load(6, second))
            inverses = builder.fmul(load(3, builder.add(first, gap_one)), load(6, builder.add(second, gap_two)))
            store(9, builder.add(at_out, x), builder.fmul(builder.fsub(total, means), inverses))
        return context.get_dummy_value()

    return signature, generate


def lead(chip: int) -> int:
    """Columns that `row_correlations` reads before the first point's chip ends: whole vectors."""
    return -(-(chip - 1) // LANES) * LANES


block_sums: Any = _block_sums
column_sums: Any = _column_sums
row_correlations: Any = _row_correlations
"""As compiled code calls them: without the first argument, which numba adds."""
