"""Symmetric positive definite band matrices, compiled: factorise, and solve for several right-hand sides at a time.

The upper half of H lies row by row in a flat array: `band[i stride + k]` holds H[i, i + k] for k = 0 .. p. Rows are
padded with zeros (`stride_of`), so vectors may run over their ends. After `factorise` the first column holds 1 / D and
the rest the rows of D L^T (H = L D L^T). Right-hand sides are rows of `lanes` neighbouring values. The inner loops are
vectors of LLVM: all rows live in one array, and compilers do not vectorise what may overlap.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

FASTMATH = {"contract", "nsz"}
"""What may be fused. Nothing is re-ordered: numba compiles a function once for each caller, and which copy runs depends
on what the cache holds, so a process that compiled would give other last bits than one that loaded."""
VECTOR = 8
"""Doubles of one register of AVX-512; two of AVX2, four of NEON."""
PIVOTS = 4
"""Rows eliminated at a time: each load and store of a row then serves as many multiply-adds."""
UNROLL = 2
"""Rows below that go into sums of their own, so that no sum waits for the one before."""
SINGLE, BLOCK = (0,), (0,) * PIVOTS


@njit(nogil=True, cache=True)
def stride_of(width: Any) -> Any:
    """Length of a padded row for `width` = p + 1.

    Examples
    --------
    >>> stride_of(3), stride_of(42)
    (16, 56)
    """
    return -(-(width + PIVOTS - 1 + VECTOR - 1) // VECTOR) * VECTOR


def _vectors(builder: Any, lanes: int) -> tuple[Any, Any]:
    vector = ir.VectorType(ir.DoubleType(), lanes)
    name = f"llvm.fmuladd.v{lanes}f64"
    return vector, cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)


def _broadcast(builder: Any, value: Any, lanes: int) -> Any:
    empty = ir.Constant(ir.VectorType(ir.DoubleType(), lanes), ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(one, empty, mask)


def _access(builder: Any, data: Any, vector: Any, index: Any, value: Any = None) -> Any:
    """Load a vector, or store `value`, at any element."""
    pointer = builder.bitcast(builder.gep(data, [index]), vector.as_pointer())
    access = builder.load(pointer) if value is None else builder.store(value, pointer)
    access.align = 8
    return access


def _element(builder: Any, data: Any, start: Any, k: Any, lanes: int) -> Any:
    return _broadcast(builder, builder.load(builder.gep(data, [builder.add(start, k)])), lanes)


def _rows(builder: Any, at: Any, stride: Any, count: int) -> list[Any]:
    return [builder.add(at, builder.mul(stride, ir.Constant(at.type, m))) for m in range(count)]


@intrinsic
def _subtract(typing_context: Any, band: Any, target: Any, count: Any, sources: Any, factors: Any) -> Any:
    """`band[target + q] -= sum of factors * band[sources + q]` for q < count, rounded up to whole vectors."""
    signature = types.void(band, target, count, sources, factors)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, multiply_add = _vectors(builder, VECTOR)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        starts = cgutils.unpack_tuple(builder, arguments[3])
        scales = [_broadcast(builder, builder.fneg(f), VECTOR) for f in cgutils.unpack_tuple(builder, arguments[4])]
        size = ir.Constant(arguments[2].type, VECTOR)
        trips = builder.udiv(builder.add(arguments[2], ir.Constant(arguments[2].type, VECTOR - 1)), size)
        with cgutils.for_range(builder, trips) as loop:
            q = builder.mul(loop.index, size)
            at = builder.add(arguments[1], q)
            total = _access(builder, data, vector, at)
            for start, scale in zip(starts, scales, strict=True):
                value = _access(builder, data, vector, builder.add(start, q))
                total = builder.call(multiply_add, [scale, value, total])
            _access(builder, data, vector, at, total)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _forward(
    typing_context: Any, band: Any, at: Any, stride: Any, b: Any, row: Any, count: Any, lanes: Any, pivots: Any
) -> Any:
    """Rows of L^-1 and D^-1: divides them by their pivots, and takes them off those below, down to `row + count`."""
    signature = types.void(band, at, stride, b, row, count, lanes, pivots)
    width, block = len(lanes), len(pivots)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, multiply_add = _vectors(builder, width)
        data = [context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (0, 3)]
        _, at, stride, _, row, count, _, _ = arguments
        size = ir.Constant(row.type, width)
        starts = _rows(builder, at, stride, block)

        def taken(values: list[Any], r: Any, place: Any) -> Any:
            total = _access(builder, data[1], vector, place)
            for m, (start, value) in enumerate(zip(starts, values, strict=False)):
                factor = _element(builder, data[0], start, builder.sub(r, ir.Constant(row.type, m)), width)
                total = builder.call(multiply_add, [factor, value, total])
            return total

        values: list[Any] = []
        for m in range(block):
            offset = ir.Constant(row.type, m)
            place = builder.mul(builder.add(row, offset), size)
            pivot = _element(builder, data[0], starts[m], ir.Constant(row.type, 0), width)
            value = builder.fmul(taken(values, offset, place), pivot)
            _access(builder, data[1], vector, place, value)
            values.append(builder.fneg(value))
        with cgutils.for_range(builder, count, start=ir.Constant(row.type, block)) as loop:
            place = builder.mul(builder.add(row, loop.index), size)
            _access(builder, data[1], vector, place, taken(values, loop.index, place))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _backward(
    typing_context: Any, band: Any, at: Any, stride: Any, b: Any, row: Any, trips: Any, lanes: Any, pivots: Any
) -> Any:
    """Rows of L^-T, from `UNROLL` times `trips` rows below them."""
    signature = types.void(band, at, stride, b, row, trips, lanes, pivots)
    width, block = len(lanes), len(pivots)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, multiply_add = _vectors(builder, width)
        data = [context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (0, 3)]
        _, at, stride, _, row, trips, _, _ = arguments
        size = ir.Constant(row.type, width)
        starts = _rows(builder, at, stride, block)
        nothing = ir.Constant(vector, [0.0] * width)
        sums = [[cgutils.alloca_once_value(builder, nothing) for _ in range(UNROLL)] for _ in range(block)]
        with cgutils.for_range(builder, trips) as loop:
            first = builder.mul(loop.index, ir.Constant(row.type, UNROLL))
            for step in range(UNROLL):
                r = builder.add(first, ir.Constant(row.type, block + step))
                value = _access(builder, data[1], vector, builder.mul(builder.add(row, r), size))
                for m in range(block):
                    factor = _element(builder, data[0], starts[m], builder.sub(r, ir.Constant(row.type, m)), width)
                    partial = sums[m][step]
                    builder.store(builder.call(multiply_add, [factor, value, builder.load(partial)]), partial)
        values: dict[int, Any] = {}
        for m in reversed(range(block)):
            total = builder.load(sums[m][0])
            for partial in sums[m][1:]:
                total = builder.fadd(total, builder.load(partial))
            for k, value in values.items():
                factor = _element(builder, data[0], starts[m], ir.Constant(row.type, k - m), width)
                total = builder.call(multiply_add, [factor, value, total])
            pivot = builder.fneg(_element(builder, data[0], starts[m], ir.Constant(row.type, 0), width))
            place = builder.mul(builder.add(row, ir.Constant(row.type, m)), size)
            values[m] = builder.call(multiply_add, [pivot, total, _access(builder, data[1], vector, place)])
            _access(builder, data[1], vector, place, values[m])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _respond(
    typing_context: Any, fields: Any, factors: Any, sums: Any, two: Any, i: Any, start: Any, stop: Any, lanes: Any
) -> Any:
    """Pairs `start` to `stop`, all with first image i: c = the sum of factor (field[two] - field[i]).

    Adds c to the sums of the second image and takes it off those of the first.
    """
    signature = types.void(fields, factors, sums, two, i, start, stop, lanes)
    width = len(lanes)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, multiply_add = _vectors(builder, width)
        pointers = [
            [
                context.make_array(kind)(context, builder, array).data
                for kind, array in zip(kinds, cgutils.unpack_tuple(builder, arrays), strict=True)
            ]
            for kinds, arrays in zip(signature.args[:2], arguments[:2], strict=True)
        ]
        sums, two = (context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (2, 3))
        i, start, stop, _ = arguments[4:]
        size = ir.Constant(i.type, width)
        first = builder.mul(i, size)
        here = [_access(builder, field, vector, first) for field in pointers[0]]
        left = cgutils.alloca_once_value(builder, _access(builder, sums, vector, first))
        with cgutils.for_range(builder, stop, start=start) as loop:
            image = builder.zext(builder.load(builder.gep(two, [loop.index])), i.type)
            place = builder.mul(image, size)
            c: Any = None
            for field, factor, value in zip(*pointers, here, strict=True):
                scale = _broadcast(builder, builder.load(builder.gep(factor, [loop.index])), width)
                moved = builder.fsub(_access(builder, field, vector, place), value)
                c = builder.fmul(moved, scale) if c is None else builder.call(multiply_add, [moved, scale, c])
            _access(builder, sums, vector, place, builder.fadd(_access(builder, sums, vector, place), c))
            builder.store(builder.fsub(builder.load(left), c), left)
        _access(builder, sums, vector, first, builder.load(left))
        return context.get_dummy_value()

    return signature, generate


# As compiled code calls them: without the first argument, which numba adds.
subtract: Any = _subtract
forward: Any = _forward
backward: Any = _backward
respond: Any = _respond


@njit(nogil=True, cache=True, error_model="numpy")
def factorise(band: Any, n: Any, width: Any, stride: Any) -> Any:
    """H = L D L^T in place.

    Parameters
    ----------
    band : (n stride,) float64
    n, width, stride : int
        Rows, half-bandwidth + 1, length of a padded row.

    Returns
    -------
    float
        log det H, or NaN where H is not positive definite.

    Examples
    --------
    >>> h = np.zeros(32)
    >>> h[[0, 1, 16]] = 4.0, 2.0, 3.0
    >>> round(float(np.exp(factorise(h, 2, 2, 16))), 9)
    8.0
    """
    n, width, stride = np.uint64(n), np.uint64(width), np.uint64(stride)
    one, log_det = np.uint64(1), 0.0
    for i in range(np.uint64(0), n, np.uint64(PIVOTS)):
        block = min(np.uint64(PIVOTS), n - i)
        product = 1.0
        for a in range(block):
            at = (i + a) * stride
            pivot = band[at]
            if not pivot > 0.0:
                return np.nan
            product *= pivot
            band[at] = 1.0 / pivot
            for k in range(one, min(block - a, width)):
                subtract(band, at + k * stride, width - k, (at + k,), (band[at + k] * band[at],))
        log_det += np.log(product)
        if block < np.uint64(PIVOTS):
            break
        a0 = i * stride
        a1, a2, a3 = a0 + stride, a0 + np.uint64(2) * stride, a0 + np.uint64(3) * stride
        d0, d1, d2, d3 = band[a0], band[a1], band[a2], band[a3]
        for r in range(np.uint64(4), min(width + np.uint64(3), n - i)):
            k0, k1, k2, k3 = a0 + r, a1 + r - one, a2 + r - np.uint64(2), a3 + r - np.uint64(3)
            subtract(
                band, a0 + r * stride, width + np.uint64(3) - r, (k0, k1, k2, k3),
                (band[k0] * d0, band[k1] * d1, band[k2] * d2, band[k3] * d3),
            )  # fmt: skip
    return log_det


@njit(nogil=True, cache=True, error_model="numpy")
def solve(band: Any, n: Any, width: Any, stride: Any, b: Any, lanes: Any) -> Any:
    """H^-1 b in place, from the factorised band.

    Parameters
    ----------
    band, n, width, stride
        As `factorise` leaves and takes them.
    b : ((n + width + PIVOTS) lanes,) float64
        Right-hand sides, row by row, and zeros below.
    lanes : tuple
        Its length is the number of right-hand sides.

    Examples
    --------
    >>> h, b = np.zeros(32), np.zeros(16)
    >>> h[[0, 1, 16]] = 4.0, 2.0, 3.0
    >>> b[:4] = 8.0, 4.0, 8.0, 2.0
    >>> _ = factorise(h, 2, 2, 16)
    >>> solve(h, 2, 2, 16, b, (0, 0))
    >>> b[:4].tolist()
    [1.0, 1.0, 2.0, 0.0]
    """
    n, width, stride = np.uint64(n), np.uint64(width), np.uint64(stride)
    one, block = np.uint64(1), np.uint64(PIVOTS)
    whole = n - n % block
    for i in range(np.uint64(0), whole, block):
        forward(band, i * stride, stride, b, i, min(width + block - one, n - i), lanes, BLOCK)
    for i in range(whole, n):
        forward(band, i * stride, stride, b, i, min(width, n - i), lanes, SINGLE)
    trips = (width + np.uint64(UNROLL - 2)) // np.uint64(UNROLL)
    for i in range(n - whole):
        row = n - one - i
        backward(band, row * stride, stride, b, row, trips, lanes, SINGLE)
    for i in range(block, whole + one, block):
        row = whole - i
        backward(band, row * stride, stride, b, row, trips, lanes, BLOCK)
