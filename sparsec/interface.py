"""What the compiler writes and the runtime reads: element types, kinds of padding, the manifest.

Their numbers in C are those of ``sparsec.h``, which also holds the version of the C interface.
"""

from __future__ import annotations

from dataclasses import dataclass

#: File of an artifact that describes it, what its `format` field says, and the version of its
#: fields.
MANIFEST = "manifest.json"
FORMAT = "sparsec-artifact"
SCHEMA = 3

#: Fields of the manifest that an artifact for several targets has once for each.
PER_TARGET = ("target", "toolchain", "supports_lengths", "buckets", "layers")


@dataclass(frozen=True)
class Element:
    """An element type.

    Attributes:
        name: what numpy and the manifest call it.
        number: in ``sparsec_tensor.dtype``; those of ONNX TensorProto.DataType.
        c_type: its type in C.
        suffix: ending of the C functions for it (``op_add_f32``).
    """

    name: str
    number: int
    c_type: str
    suffix: str

    @property
    def constant(self) -> str:
        """The name of `number` in C."""
        return f"SPARSEC_{self.name.upper()}"


#: All element types, by name.
ELEMENTS = {
    element.name: element
    for element in (
        Element("float32", 1, "float", "f32"),
        Element("uint8", 2, "uint8_t", "u8"),
        Element("int8", 3, "int8_t", "i8"),
        Element("uint16", 4, "uint16_t", "u16"),
        Element("int16", 5, "int16_t", "i16"),
        Element("int32", 6, "int32_t", "i32"),
        Element("int64", 7, "int64_t", "i64"),
        Element("bool", 9, "uint8_t", "u8"),
        Element("float64", 11, "double", "f64"),
        Element("uint32", 12, "uint32_t", "u32"),
        Element("uint64", 13, "uint64_t", "u64"),
    )
}

#: What becomes of sequences that are shorter than their bucket, as `PaddingInfo` explains it: the
#: numbers of ``SPARSEC_PADDING_...``.
PADDING = {"masked": 0, "lengths": 1, "exact": 2}
