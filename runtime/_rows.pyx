# cython: language_level=3
"""Sums over the rows of many small arrays, in one call: numpy takes longer to be called for each
than to add."""

import numpy as np

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport calloc, free
from libc.string cimport memset


cdef enum:
    # Rows up to which sums are in single precision: half of the time, and as exact as is needed.
    FEW = 64


cdef extern from *:
    """
    /* row += x, n elements that do not overlap. */
    static void add_floats(float *restrict row, const float *restrict x, Py_ssize_t n)
    {
        for (Py_ssize_t i = 0; i < n; i++)
            row[i] += x[i];
    }

    static void add_to_doubles(double *restrict row, const float *restrict x, Py_ssize_t n)
    {
        for (Py_ssize_t i = 0; i < n; i++)
            row[i] += x[i];
    }

    static void to_floats(float *restrict row, const double *restrict x, Py_ssize_t n)
    {
        for (Py_ssize_t i = 0; i < n; i++)
            row[i] = (float)x[i];
    }
    """
    void add_floats(float *, const float *, Py_ssize_t) noexcept nogil
    void add_to_doubles(double *, const float *, Py_ssize_t) noexcept nogil
    void to_floats(float *, const double *, Py_ssize_t) noexcept nogil


cdef void sum_rows(
    const char *x, Py_ssize_t rows, Py_ssize_t stride, float *out, double *whole, Py_ssize_t n
) noexcept nogil:
    """The sum of rows of n floats to `out`; `whole` is room for n doubles."""
    cdef Py_ssize_t i
    if rows > FEW:
        memset(whole, 0, n * sizeof(double))
    memset(out, 0, n * sizeof(float))
    for i in range(rows):
        if i and i % FEW == 0:
            add_to_doubles(whole, out, n)
            memset(out, 0, n * sizeof(float))
        add_floats(out, <const float *>(x + i * stride), n)
    if rows > FEW:
        add_to_doubles(whole, out, n)
        to_floats(out, whole, n)


def sum_each(list arrays, float[:, ::1] out not None):
    """Add up the rows of each array.  Other threads run meanwhile.

    Sums of up to 64 rows are in single precision; those of more are sums of such, in double
    precision, rounded in the end.

    Args:
        arrays: of numbers, ``[rows, n]`` each, rows of any count; float32 is read in place.
        out: float32 ``[len(arrays), n]``, contiguous, to which the sums are written.

    Raises:
        ValueError: an array has another number of axes or columns, or there are not as many arrays
            as rows of `out`.
    """
    cdef Py_ssize_t count = len(arrays), n = out.shape[1], i, held = 0
    cdef Py_buffer *views
    cdef double *whole
    if count != out.shape[0]:
        raise ValueError(f"{count} arrays, and room for the sums of {out.shape[0]}")
    if not count or not n:
        return
    views = <Py_buffer *>calloc(count, sizeof(Py_buffer))
    whole = <double *>calloc(n, sizeof(double))
    try:
        if not views or not whole:
            raise MemoryError
        for i in range(count):
            PyObject_GetBuffer(arrays[i], &views[i], PyBUF_STRIDES | PyBUF_FORMAT)
            held = i + 1
            if views[i].ndim != 2 or views[i].shape[1] != n:
                raise ValueError(f"array {i} has not the shape [rows, {n}]")
            if views[i].format[0] != b"f" or views[i].format[1] or views[i].strides[1] != 4:
                PyBuffer_Release(&views[i])
                held = i
                PyObject_GetBuffer(
                    np.ascontiguousarray(arrays[i], np.float32), &views[i],
                    PyBUF_STRIDES | PyBUF_FORMAT,
                )
                held = i + 1
        with nogil:
            for i in range(count):
                sum_rows(
                    <const char *>views[i].buf, views[i].shape[0], views[i].strides[0],
                    &out[i, 0], whole, n,
                )
    finally:
        for i in range(held):
            PyBuffer_Release(&views[i])
        free(views)
        free(whole)
