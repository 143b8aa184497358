"""What a call passes to a lane kernel: one struct for each kernel, whose fields say what they are.

Names stand for roles (``weights``, ``scale``, ``operand``), never for values of a model: layers
that look alike share a kernel, and so its struct.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsec.compiler.codegen.plan import Slot
from sparsec.compiler.ir import Node
from sparsec.interface import ELEMENTS


@dataclass(frozen=True)
class Number:
    """A number that is known when a kernel is called: the only element of a buffer.

    Attributes:
        slot: the buffer.
        dtype: float32 or 8-bit.
        reciprocal: 1 / the number is meant.
    """

    slot: Slot
    dtype: np.dtype[Any]
    reciprocal: bool = False


@dataclass(frozen=True, eq=False)
class Field:
    """A field of a kernel's struct.

    Attributes:
        name: in C.
        type: in C, e.g. ``const float *`` or ``int32_t``.
        kind: what the value is: ``input`` or ``output`` (a slot), ``vector`` (an array), ``number``
            (a number, or a :class:`Number`), ``site`` (the node that looks indices up).
        value: what the call passes.
    """

    name: str
    type: str
    kind: str
    value: Any

    @property
    def declaration(self) -> str:
        """The field in C, without its semicolon."""
        return f"{self.type}{'' if self.type.endswith('*') else ' '}{self.name}"


def pointer_to(slot: Slot, dtype: np.dtype[Any]) -> str:
    """The C type that a kernel sees a buffer as; `dtype` is that of the value in it."""
    form = slot[1]
    if form.startswith("panel"):
        return "char *"
    element = "int8" if form == "byte_s8" else dtype.name
    return f"{ELEMENTS[element].c_type} *"


@dataclass
class Args:
    """The struct of a kernel, and what one call puts into it.

    Every method returns the C expression by which the kernel reads the field.  A buffer stands in
    it once, however many operands it is.
    """

    fields: list[Field] = field(default_factory=list)
    #: Buffers that are read, those of numbers included.
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[Slot] = field(default_factory=list)
    #: Those of them that all pieces of the work add to, from 0 on.
    cleared: list[Slot] = field(default_factory=list)

    def input(self, slot: Slot, dtype: np.dtype[Any], role: str = "operand") -> str:
        """A buffer that the kernel reads; `dtype` is that of its value."""
        self._reads(slot)
        for known in self.fields:
            if known.kind == "input" and known.value == slot:
                return f"a->{known.name}"
        return self._add(role, f"const {pointer_to(slot, dtype)}", "input", slot)

    def output(self, slot: Slot, dtype: np.dtype[Any], role: str = "y") -> str:
        """A buffer that the kernel writes; `dtype` is that of its value."""
        self.outputs.append(slot)
        return self._add(role, pointer_to(slot, dtype), "output", slot)

    def vector(self, array: np.ndarray[Any, Any], role: str) -> str:
        """A constant array."""
        return self._add(role, f"const {ELEMENTS[array.dtype.name].c_type} *", "vector", array)

    def number(self, number: float | Number, role: str) -> str:
        """A float32."""
        return self._number(number if isinstance(number, Number) else float(number), role, "float")

    def integer(self, number: int | Number, role: str) -> str:
        """An int32."""
        return self._number(number if isinstance(number, Number) else int(number), role, "int32_t")

    def site(self, node: Node) -> str:
        """A place where the kernel looks up the indices that `node` is about."""
        return self._add("site", "int32_t", "site", node)

    def _number(self, number: float | Number, role: str, type_: str) -> str:
        if isinstance(number, Number):
            self._reads(number.slot)  # it has to live until then
        return self._add(role, type_, "number", number)

    def _reads(self, slot: Slot) -> None:
        if slot not in self.inputs:
            self.inputs.append(slot)

    def _add(self, role: str, type_: str, kind: str, value: Any) -> str:
        taken = {known.name for known in self.fields}
        name = next(n for i in range(len(taken) + 1) if (n := f"{role}{i or ''}") not in taken)
        self.fields.append(Field(name, type_, kind, value))
        return f"a->{name}"
