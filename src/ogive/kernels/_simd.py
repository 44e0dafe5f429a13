"""The one loop that the compiler does not find by itself: sums of products over a block, sixteen blocks at a time.

Nine tenths of all multiplications of a matching run are here. Written as plain loops they need a run-time check of
every pair of pointers, which the vectoriser refuses; written as vectors of LLVM they run near the processor's rate of
fused multiply-adds.
Every block is summed by the same instructions in the same order, so there is no remainder loop with other rounding.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Blocks summed at a time: one register of AVX-512, two of AVX2, four of NEON."""


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
        float32, int64 = ir.FloatType(), ir.IntType(64)
        vector = ir.VectorType(float32, LANES)
        data = {k: context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (0, 4, 9)}
        _, at_a, plane_a, row_a, _, at_b, plane_b, row_b, phase, _, at_out, row_out = arguments[:12]
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
        )

        def number(value: int) -> Any:
            return ir.Constant(int64, value)

        def pointer(array: int, index: Any) -> Any:
            return builder.bitcast(builder.gep(data[array], [index]), vector.as_pointer())

        def load(array: int, index: Any) -> Any:
            value = builder.load(pointer(array, index))
            value.align = 4
            return value

        def place(shift: int) -> Any:
            """Where pixel `phase + shift` of image 2 lies: its plane, and the block that it belongs to."""
            x = builder.add(phase, number(shift))
            plane = builder.mul(builder.urem(x, number(width)), plane_b)
            return builder.add(at_b, builder.add(plane, builder.udiv(x, number(width))))

        places = [place(shift) for shift in range(width + count - 1)]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES)) for _ in range(count)]
        with cgutils.for_range(builder, number(width)) as loop:
            y_a, y_b = builder.mul(row_a, loop.index), builder.mul(row_b, loop.index)
            total = [builder.load(s) for s in sums]
            second: list[Any] = []
            for k in range(width):
                first = load(0, builder.add(builder.add(at_a, builder.mul(plane_a, number(k))), y_a))
                for j in range(count):
                    if k + j == len(second):
                        second.append(load(4, builder.add(places[k + j], y_b)))
                    total[j] = builder.call(multiply_add, [first, second[k + j], total[j]])
            for s, value in zip(sums, total, strict=True):
                builder.store(value, s)
        for j, s in enumerate(sums):
            index = builder.add(at_out, builder.mul(row_out, number(j)))
            builder.store(builder.load(s), pointer(9, index)).align = 4
        return context.get_dummy_value()

    return signature, generate


block_sums: Any = _block_sums
"""As compiled code calls it: without the first argument, which numba adds."""
