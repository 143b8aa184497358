"""A model small enough to write its C by hand: ``output[b, s] = table[input_ids[b, s] & 255]``.

Stands in for code generation where a test is about what happens to the C, not about the C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from runtime_fake import KERNEL_ROW

TABLE = np.arange(256, dtype=np.float32) * 0.5 - 7

SOURCE = """\
#include "table.h"

static const sparsec_tensor inputs[] = {{"input_ids", SPARSEC_INT64, 2,
    {SPARSEC_DIM_BATCH, SPARSEC_DIM_SEQUENCE}}};
static const sparsec_tensor outputs[] = {{"values", SPARSEC_FLOAT32, 2,
    {SPARSEC_DIM_BATCH, SPARSEC_DIM_SEQUENCE}}};
static const sparsec_info info = {SPARSEC_ABI_VERSION, LENGTH, "fake", "generic",
    1, 1, inputs, outputs, 0, -1};

EXPORT const sparsec_info *sparsec_model_info(void) { return &info; }

EXPORT size_t sparsec_workspace_size(int64_t batch, int32_t threads) {
    (void)batch, (void)threads;
    return 64;
}

EXPORT int sparsec_run(const void *const *in, void *const *out, int64_t batch,
                       const int32_t *lengths, void *workspace, const sparsec_parallel *parallel) {
    (void)lengths, (void)workspace, (void)parallel;
    const int64_t *ids = in[0];
    float *values = out[0];
    for (int64_t i = 0; i < batch * LENGTH; i++) values[i] = lookup(ids[i]);
    return SPARSEC_OK;
}

EXPORT int sparsec_bad_index(const void *workspace, sparsec_index_error *error) {
    (void)workspace, (void)error;
    return SPARSEC_BAD_ARGUMENT;
}
"""

HEADER = """\
#include "sparsec.h"
#include "weights.h"
#define EXPORT __attribute__((visibility("default")))
#define LENGTH %d
float lookup(int64_t id);
"""

LOOKUP = """\
#include "table.h"

float lookup(int64_t id) {
#ifdef SPARSEC_WEIGHTS
    return ((const float *)SPARSEC_WEIGHTS)[id & 255];
#else
    return (float)(id & 255) * 0.5f - 7.0f;
#endif
}
"""


@dataclass(frozen=True)
class Bucket:
    length: int
    files: Mapping[str, str]
    kernels: tuple[dict[str, Any], ...]
    supports_lengths: bool = False


@dataclass(frozen=True)
class Emission:
    buckets: tuple[Bucket, ...]
    weights: bytes
    layers: tuple[dict[str, Any], ...]


def emission(lengths: tuple[int, ...] = (4, 16), weights: bool = True) -> Emission:
    """What code generation would give for the model above."""
    kernel = {
        **KERNEL_ROW,
        "name": "lookup",
        "kernel": "gather",
        "source": "Gather_0",
    }
    buckets = tuple(
        Bucket(
            length,
            {"model.c": SOURCE, "table.h": HEADER % length, "lookup.c": LOOKUP},
            (kernel,),
        )
        for length in lengths
    )
    layer = {
        "name": "table",
        "op": "linear",
        "n": 16,
        "k": 16,
        "sparsity": 0.0,
        "block4_sparsity": 0.0,
        "kernel": "gather",
    }
    return Emission(buckets, TABLE.tobytes() if weights else b"", (layer,))


INPUTS = ({"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]},)
OUTPUTS = ({"name": "values", "dtype": "float32", "shape": ["batch", "sequence"]},)
