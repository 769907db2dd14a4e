"""Vectors of 16 float32 in compiled loops: a sum stays in registers from its first term to its last.

Left to itself LLVM keeps such sums in memory, loads and stores them every few terms, and checks anew for each short
inner loop whether arrays overlap: products of small matrices ran at 24 GFLOP/s of a core's 80 (AVX2), and at 50 so.
LLVM makes of a vector what the processor has: two registers with AVX2, one with AVX-512, four with NEON or SSE.
"""

from typing import Any

from .threads import numba

LANES = 16
"""Numbers of a vector."""

load: Any
store: Any
add_product: Any
if not numba:
    load = store = add_product = None
else:
    from llvmlite import ir
    from numba import extending
    from numba.core import cgutils
    from numba.core.errors import TypingError

    intrinsic: Any = extending.intrinsic  # what it makes is called without its first argument

    _TYPE = ir.VectorType(ir.FloatType(), LANES)
    _CONTRACT = ("contract",)  # a product and a sum may be one instruction

    class _Vector(numba.types.Type):
        def __init__(self) -> None:
            super().__init__(f"float32x{LANES}")

    _vector = _Vector()

    @extending.register_model(_Vector)
    class _Model(extending.models.PrimitiveModel):
        def __init__(self, manager: Any, of: Any) -> None:
            super().__init__(manager, of, _TYPE)

    def _check(array: Any) -> None:
        if not (isinstance(array, numba.types.Array) and array.dtype == numba.float32 and array.layout == "C"):
            raise TypingError(f"got {array}, expected a contiguous array of float32")

    def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type = signature.args[0]
        array = context.make_array(array_type)(context, builder, args[0])
        at = cgutils.get_item_pointer(context, builder, array_type, array, args[1:3], wraparound=False)
        return builder.bitcast(at, _TYPE.as_pointer())

    def _load(typing: Any, array: Any, row: Any, column: Any) -> Any:
        """array[row, column : column + LANES] as a vector; the array is contiguous."""
        _check(array)

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(_pointer(context, builder, signature, args), align=4)

        return _vector(array, numba.intp, numba.intp), code

    def _store(typing: Any, array: Any, row: Any, column: Any, vector: Any) -> Any:
        """array[row, column : column + LANES] = vector."""
        _check(array)

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store(args[3], _pointer(context, builder, signature, args), align=4)
            return context.get_dummy_value()

        return numba.void(array, numba.intp, numba.intp, _vector), code

    def _add_product(typing: Any, total: Any, a: Any, vector: Any) -> Any:
        """total + a * vector for a number a."""

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            total, a, vector = args
            nothing, first = ir.Constant(_TYPE, ir.Undefined), ir.Constant(ir.IntType(32), 0)
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
            everywhere = builder.shuffle_vector(builder.insert_element(nothing, a, first), nothing, zeros)
            return builder.fadd(total, builder.fmul(everywhere, vector, flags=_CONTRACT), flags=_CONTRACT)

        return _vector(_vector, numba.float32, _vector), code

    load, store, add_product = intrinsic(_load), intrinsic(_store), intrinsic(_add_product)
