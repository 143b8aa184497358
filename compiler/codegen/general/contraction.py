"""Matrix products: float, integer, and the linear layers that passes make."""

from __future__ import annotations

from sparsec.compiler.codegen.general.extents import (
    ONE,
    ZERO,
    Extent,
    collapse,
    decode,
    extents,
    offset,
    product,
    strides,
)
from sparsec.compiler.codegen.general.render import Call, NotGeneral, c_type, suffix
from sparsec.compiler.ir import Shape, Value
from sparsec.compiler.ops.elementwise import broadcast_shape


class _Batches:
    """The extents in front of the matrices, and where each operand's matrix begins."""

    def __init__(self, a: Shape, b: Shape, *others: Shape) -> None:
        shape = broadcast_shape(a[:-2], b[:-2])
        operands = []
        for tensor in (a, b, *others):
            own = strides(extents(tensor))[:-2]
            operands.append([ZERO] * (len(shape) - len(own)) + own)
        dims, steps = collapse(extents(shape), operands)
        self.count = product(dims)
        self.decode = decode("batch", dims, "b", steps)
        self.offsets = [offset("b", s) for s in steps]


def _matrices(a: Shape, b: Shape) -> tuple[Shape, Shape]:
    """The operands' shapes with the extents that numpy.matmul adds to vectors."""
    return (a if len(a) > 1 else (1, *a)), (b if len(b) > 1 else (*b, 1))


def emit_matmul(call: Call) -> str:
    """Float product in register blocks of rows and vectors."""
    a, b = _matrices(call.inputs[0].shape, call.inputs[1].shape)
    m, k, n = Extent.of(a[-2]), Extent.of(a[-1]), Extent.of(b[-1])
    batches = _Batches(a, b)
    if product(extents(b[:-2])) == ONE:
        # One matrix on the right: all rows on the left are those of one product.
        m, batches = product(extents(a[:-1])), _Batches((1, 1), (1, 1))
    s = suffix(call.outputs[0].dtype)
    nr = f"OP_NR_{s}"
    return call.render(
        "matmul",
        rows=f"({batches.count} * (({n} + {nr} - 1) / {nr}) * (({m} + OP_MC - 1) / OP_MC))",
        work=batches.count * m * n * k,
        type=c_type(call.outputs[0].dtype),
        block=f"op_gemm_block_{s}",
        nr=nr,
        kc=f"OP_KC_{s}",
        m=m,
        n=n,
        k=k,
        batches=batches,
    )


def emit_linear(call: Call) -> str:
    """Float product with weights ``[N, K]``: dot products along the rows of both."""
    x, w = call.inputs
    m, k, n = product(extents(x.shape)[:-1]), Extent.of(w.shape[1]), Extent.of(w.shape[0])
    return call.render(
        "linear",
        rows=f"((({n} + OP_DOT_NR - 1) / OP_DOT_NR) * (({m} + OP_DOT_MR - 1) / OP_DOT_MR))",
        work=m * n * k,
        block=f"op_dots_block_{suffix(call.outputs[0].dtype)}",
        m=m,
        n=n,
        k=k,
    )


def emit_matmul_integer(call: Call) -> str:
    """Exact integer product; zero points per tensor, per row of a, per column of b."""
    a, b = _matrices(call.inputs[0].shape, call.inputs[1].shape)
    m, k, n = Extent.of(a[-2]), Extent.of(a[-1]), Extent.of(b[-1])
    za, zb = parameter_number(call, 2), parameter_number(call, 3)
    za_shape = _row_zero_point(call.inputs[za], a) if za else (1, 1)
    zb_shape = _column_zero_point(call.inputs[zb], b) if zb else (1, 1)
    batches = _Batches(a, b, za_shape, zb_shape)
    return _integer(
        call,
        batches,
        m,
        n,
        k,
        a_zero=f"x{za}[{_at(batches.offsets[2], za_shape[-2], 'i')}]" if za else "0",
        b_zero=f"x{zb}[{_at(batches.offsets[3], zb_shape[-1], 'j')}]" if zb else "0",
        b_row=n,
        b_column=ONE,
        store="(int32_t)sum",
    )


def parameter_number(call: Call, index: int) -> int:
    """Which C parameter the node's optional input `index` is, or 0 if it is absent."""
    names = (*call.node.inputs, "", "")
    return sum(1 for name in names[:index] if name) if names[index] else 0


def _at(base: str, extent: object, index: str) -> str:
    own = "0" if extent == 1 else index
    return own if base == "0" else f"{base} + {own}"


def _row_zero_point(value: Value, a: Shape) -> Shape:
    """The zero point of a as ``[..., M or 1, 1]``."""
    shape = value.shape
    if product(extents(shape)) == ONE:
        return (1, 1)
    if len(shape) == 1:
        shape = (*shape, 1)
    if shape[-1] != 1 or shape[-2] not in (1, a[-2]):
        raise NotGeneral(f"zero point {value} of the left operand {list(a)} is not per row")
    return shape


def _column_zero_point(value: Value, b: Shape) -> Shape:
    """The zero point of b as ``[..., 1, N or 1]``."""
    shape = value.shape
    if product(extents(shape)) == ONE:
        return (1, 1)
    if len(shape) == 1:
        shape = (1, *shape)
    if shape[-2] != 1 or shape[-1] not in (1, b[-1]):
        raise NotGeneral(f"zero point {value} of the right operand {list(b)} is not per column")
    return shape


def emit_qlinear(call: Call) -> str:
    """Exact integer product with weights ``[N, K]``, then bias and scale."""
    x, w, scale = call.inputs[:3]
    k, n = Extent.of(w.shape[1]), Extent.of(w.shape[0])
    m = product(extents(x.shape)[:-1])
    total = "(int32_t)(sum + (uint32_t)x3[j])" if len(call.inputs) > 3 else "(int32_t)sum"
    return _integer(
        call,
        _Batches((1, 1), (1, 1)),
        m,
        n,
        k,
        a_zero=str(int(call.node.attrs["x_zp"])),
        b_zero="0",
        b_row=ONE,
        b_column=k,
        store=f"(float){total} * x2[{'j' if scale.shape else '0'}]",
    )


def emit_linear_integer(call: Call) -> str:
    """Exact integer product with weights ``[N, K]``, as int32."""
    x, w = call.inputs
    k, n = Extent.of(w.shape[1]), Extent.of(w.shape[0])
    return _integer(
        call,
        _Batches((1, 1), (1, 1)),
        product(extents(x.shape)[:-1]),
        n,
        k,
        a_zero="0",
        b_zero="0",
        b_row=ONE,
        b_column=k,
        store="(int32_t)sum",
    )


def needs_sums(side: str, value: Value, zero: str) -> str:
    """C condition: packed operands of this side and type are off by something."""
    return "1" if zero != "0" else f"OP_{side}_{suffix(value.dtype)} != 0"


def _integer(
    call: Call,
    batches: _Batches,
    m: Extent,
    n: Extent,
    k: Extent,
    *,
    a_zero: str,
    b_zero: str,
    b_row: Extent,
    b_column: Extent,
    store: str,
) -> str:
    return call.render(
        "integer",
        rows=f"({batches.count} * (({n} + OP_INT_NR - 1) / OP_INT_NR)"
        f" * (({m} + OP_INT_MC - 1) / OP_INT_MC))",
        work=batches.count * m * n * k,
        a_type=c_type(call.inputs[0].dtype),
        b_type=c_type(call.inputs[1].dtype),
        y_type=c_type(call.outputs[0].dtype),
        m=m,
        n=n,
        k=k,
        batches=batches,
        a_suffix=suffix(call.inputs[0].dtype),
        b_suffix=suffix(call.inputs[1].dtype),
        a_zero=a_zero,
        b_zero=b_zero,
        # A zero point of one side needs the sums of the other; so does what packing adds.
        left_sums=needs_sums("RIGHT", call.inputs[1], b_zero),
        right_sums=needs_sums("LEFT", call.inputs[0], a_zero),
        b_row=b_row,
        b_column=b_column,
        store=store,
    )
