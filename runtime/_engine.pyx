# cython: language_level=3, cdivision=True
"""The Engine: thin Cython between numpy arrays and the C interface of compiled buckets.

The state of an Engine (workspaces, calls in flight) is guarded by the GIL, which is released only
around the copies and the run itself.
"""

import os
import threading

import numpy as np

from collections.abc import Mapping, Sequence

from sparsec.arguments import anchored, argument, whole, wholes
from sparsec.errors import ArtifactError, EngineClosedError, InputError, SparsecError
from sparsec.interface import ELEMENTS, PADDING
from sparsec.paths import user_path
from sparsec.runtime._loader import load
from sparsec.runtime.arrays import as_array
from sparsec.runtime.artifact import Artifact, parse_manifest, read_manifest
from sparsec.runtime.cpu import detect

from cpython.buffer cimport PyBUF_STRIDED_RO, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset


cdef extern from "<dlfcn.h>" nogil:
    void *dlsym(void *, const char *)


cdef extern from *:
    """
    #include <stdlib.h>
    #include <sys/mman.h>

    #define HUGE_PAGE ((size_t)2 << 20)

    /* At least `size` bytes, 64-byte aligned; on huge pages where it is that large. */
    static void *block_alloc(size_t size)
    {
        void *p = NULL;
        if (size > SIZE_MAX - HUGE_PAGE)
            return NULL;
        const size_t unit = size >= HUGE_PAGE ? HUGE_PAGE : 64;
        size = (size + unit - 1) / unit * unit;
        if (posix_memalign(&p, unit, size) != 0)
            return NULL;
    #ifdef MADV_HUGEPAGE
        if (unit == HUGE_PAGE)
            madvise(p, size, MADV_HUGEPAGE);
    #endif
        return p;
    }
    """
    void *block_alloc(size_t) nogil


cdef extern from "sparsec.h" nogil:
    enum:
        SPARSEC_ABI_VERSION
        SPARSEC_MAX_RANK
        SPARSEC_DIM_BATCH
        SPARSEC_DIM_SEQUENCE
        SPARSEC_OK
        SPARSEC_BAD_INDEX
        SPARSEC_PADDING_EXACT
    enum:
        SPARSEC_FLOAT32
        SPARSEC_INT32
        SPARSEC_INT64
        SPARSEC_FLOAT64
        SPARSEC_INT16
        SPARSEC_UINT16
        SPARSEC_UINT32
        SPARSEC_UINT64
    ctypedef struct sparsec_tensor:
        const char *name
        int32_t dtype
        int32_t rank
        int64_t *dims
    ctypedef struct sparsec_info:
        uint32_t abi_version
        uint32_t length
        int32_t n_inputs
        int32_t n_outputs
        const sparsec_tensor *inputs
        const sparsec_tensor *outputs
        int32_t supports_lengths
        int32_t mask_input
        int32_t padding
    ctypedef struct sparsec_parallel:
        int32_t threads
    ctypedef struct sparsec_index_error:
        int64_t index
        int64_t extent
        const char *table
        const char *node
        int32_t input
        int64_t position


cdef extern from "pool.h" nogil:
    int SPARSEC_POOL_MAX_THREADS
    int SPARSEC_POOL_SPIN_NS
    void sparsec_pool_configure(int32_t, int64_t)
    void sparsec_team_init(sparsec_parallel *, int32_t)
    void sparsec_pool_enter()
    void sparsec_pool_leave()
    int32_t sparsec_pool_workers()
    uint32_t sparsec_pool_generation()
    void sparsec_pool_stop()


cdef extern from "cpu.h" nogil:
    const char *sparsec_cpu_feature_name(int)
    uint64_t sparsec_cpu_features()
    void sparsec_cpu_caches(uint64_t *)
    void sparsec_cpu_brand(char *)
    void sparsec_cpu_identity(char *, uint32_t *, uint32_t *)


ctypedef const sparsec_info *(*info_function)() noexcept nogil
ctypedef size_t (*workspace_function)(int64_t, int32_t) noexcept nogil
ctypedef int (*run_function)(
    const void **, void **, int64_t, const int32_t *, void *, const sparsec_parallel *
) noexcept nogil
ctypedef int (*bad_index_function)(const void *, sparsec_index_error *) noexcept nogil

cdef enum:
    MAX_RANK = SPARSEC_MAX_RANK
    BATCH = SPARSEC_DIM_BATCH
    SEQUENCE = SPARSEC_DIM_SEQUENCE
    MAX_IDLE = 8  # idle workspaces that an engine keeps for further calls

#: The version of the C interface that this runtime speaks.
ABI_VERSION = SPARSEC_ABI_VERSION
#: The most threads that an engine can use.
MAX_THREADS = SPARSEC_POOL_MAX_THREADS


cdef struct Tensor:
    int code
    int rank
    int sequence_axes  # how many extents are "sequence"
    int sequence_axis  # the first of them
    Py_ssize_t itemsize
    int64_t dims[MAX_RANK]


cdef struct Library:
    int64_t length
    run_function run
    bad_index_function bad_index
    workspace_function workspace_size


cdef struct Block:
    void *data
    size_t size


# What one call needs; lives on the heap because the number of tensors is not known here.
cdef struct Call:
    Py_buffer *views         # the inputs' buffers; the first `held` are to be released
    int held
    const void **inputs
    void **outputs
    char **padded_inputs     # NULL: the caller's array is used as it is
    char **padded_outputs    # NULL: written straight into the caller's array
    int64_t batch
    int64_t length           # the caller's


cdef inline size_t round_up(size_t size) noexcept nogil:
    return (size + 63) & ~<size_t>63


cdef void extents(const Tensor *t, int64_t batch, int64_t length, Py_ssize_t *shape) noexcept nogil:
    """The concrete shape of a tensor."""
    cdef int a
    for a in range(t.rank):
        shape[a] = batch if t.dims[a] == BATCH else length if t.dims[a] == SEQUENCE else t.dims[a]


cdef size_t byte_size(const Tensor *t, int64_t batch, int64_t length) noexcept nogil:
    cdef Py_ssize_t shape[MAX_RANK]
    cdef size_t size = t.itemsize
    cdef int a
    extents(t, batch, length, shape)
    for a in range(t.rank):
        size *= shape[a]
    return size


cdef void copy_corner(
    char *to, const Py_ssize_t *to_shape, const char *source, const Py_ssize_t *source_shape,
    int rank, Py_ssize_t itemsize,
) noexcept nogil:
    """Copy what two dense arrays of one rank (at least 1) have in common, from index 0 on."""
    cdef Py_ssize_t to_step = itemsize, source_step = itemsize, i
    cdef Py_ssize_t n = min(to_shape[0], source_shape[0])
    cdef bint same = True
    cdef int a
    for a in range(1, rank):
        to_step *= to_shape[a]
        source_step *= source_shape[a]
        same = same and to_shape[a] == source_shape[a]
    if same:
        memcpy(to, source, n * to_step)
        return
    for i in range(n):
        copy_corner(to + i * to_step, to_shape + 1, source + i * source_step, source_shape + 1,
                    rank - 1, itemsize)


cdef Py_ssize_t real_tokens(const char *row, Py_ssize_t n, int code) noexcept nogil:
    """Index of the last non-zero element of a mask row + 1, or n where all are zero."""
    cdef Py_ssize_t i = n
    if code == SPARSEC_INT64 or code == SPARSEC_UINT64:
        while i > 0 and (<const int64_t *>row)[i - 1] == 0:
            i -= 1
    elif code == SPARSEC_INT32 or code == SPARSEC_UINT32:
        while i > 0 and (<const int32_t *>row)[i - 1] == 0:
            i -= 1
    elif code == SPARSEC_FLOAT32:
        while i > 0 and (<const float *>row)[i - 1] == 0:
            i -= 1
    elif code == SPARSEC_INT16 or code == SPARSEC_UINT16:
        while i > 0 and (<const int16_t *>row)[i - 1] == 0:
            i -= 1
    elif code == SPARSEC_FLOAT64:
        while i > 0 and (<const double *>row)[i - 1] == 0:
            i -= 1
    else:
        while i > 0 and (<const int8_t *>row)[i - 1] == 0:
            i -= 1
    return i if i > 0 else n


cdef class Engine:
    """A loaded artifact that runs on numpy arrays.

    Safe to call from many threads at once; the GIL is released while the model runs.  Usable after
    a fork; pickled by its path, for processes that are spawned.  A context manager.

    Args:
        path: the artifact's folder, or an :class:`~sparsec.runtime.artifact.Artifact`.
        num_cores: threads that a call may use, the caller included; None: all usable cores.
        skip_padding: do not compute tokens after the last one that the mask input marks; their
            outputs are 0.  Ignored by models that cannot.
        buckets: load only these sequence lengths; None: all.

    Raises:
        ArtifactError: the artifact is damaged or does not fit its manifest.
        HardwareError: this CPU lacks features that the code needs.
        InputError: an argument is wrong.
    """

    cdef object __weakref__
    cdef object _artifact, _loaded, _path, _num_cores
    cdef tuple _input_names, _output_names, _buckets
    cdef list _input_dtypes, _output_dtypes
    cdef int _n_inputs, _n_outputs, _n_libraries
    cdef Tensor *_inputs
    cdef Tensor *_outputs
    cdef Library *_libraries
    cdef Block _idle_blocks[MAX_IDLE]
    cdef int _n_idle
    cdef sparsec_parallel _team
    cdef int _mask  # index of the mask input, or -1
    cdef bint _supports_lengths, _can_skip, _skip_padding, _closed
    cdef int _padding  # SPARSEC_PADDING_...
    cdef int _running
    cdef uint32_t _generation
    cdef object _all_returned  # an Event once close() waits for running calls

    def __cinit__(self, *args, **kwargs):
        self._closed = True  # until __init__ is through

    def __init__(self, path, num_cores=None, *, skip_padding=False, buckets=None):
        if self._libraries != NULL or self._artifact is not None:
            raise SparsecError("an Engine cannot be initialized twice")
        cpu = detect()
        cdef int cores = self._core_count(num_cores, cpu.cores)
        cdef int64_t spin_ns = _spin_ns()
        artifact, lengths, loaded = _open(path, cpu, buckets)
        self._path, self._num_cores = anchored(artifact.path), num_cores
        manifest = artifact.manifest

        self._artifact = artifact
        self._loaded = loaded
        self._input_names = tuple(spec.name for spec in manifest.inputs)
        self._output_names = tuple(spec.name for spec in manifest.outputs)
        self._input_dtypes = [np.dtype(spec.dtype) for spec in manifest.inputs]
        self._output_dtypes = [np.dtype(spec.dtype) for spec in manifest.outputs]
        self._n_inputs = len(manifest.inputs)
        self._n_outputs = len(manifest.outputs)
        self._inputs = _tensors(manifest.inputs)
        self._outputs = _tensors(manifest.outputs)
        self._supports_lengths = manifest.supports_lengths
        self._padding = PADDING[manifest.padding.kind]
        self._mask = -1
        if manifest.mask_input is not None:
            self._mask = self._input_names.index(manifest.mask_input)
            shape = manifest.inputs[self._mask].shape
            self._can_skip = self._supports_lengths and shape == ("batch", "sequence")
        self._skip_padding = bool(skip_padding)

        sparsec_pool_configure(cpu.threads, spin_ns)
        sparsec_team_init(&self._team, cores)
        self._generation = sparsec_pool_generation()
        self._libraries = <Library *>calloc(len(lengths), sizeof(Library))
        if self._libraries == NULL:
            raise MemoryError()
        for length, library in zip(lengths, loaded):
            self._bind(length, library)
        self._buckets = lengths
        self._closed = False

    def __dealloc__(self):
        self._release()
        PyMem_Free(self._inputs)
        PyMem_Free(self._outputs)

    @staticmethod
    def _core_count(num_cores, int default):
        if num_cores is None:
            return min(default, MAX_THREADS)
        n = whole("num_cores", num_cores)
        if not 1 <= n <= MAX_THREADS:
            raise InputError(f"{argument('num_cores')} must be from 1 to {MAX_THREADS}, not {n}")
        return n

    cdef int _bind(self, length, loaded) except -1:
        """Find the functions of a bucket's library and compare it with the manifest."""
        cdef Library *library = &self._libraries[self._n_libraries]
        cdef const sparsec_info *info
        cdef info_function get_info
        cdef void *handle = <void *><uintptr_t>loaded.handle
        where = str(self._artifact.library(length))
        self._n_libraries += 1
        library.length = length
        get_info = <info_function>_symbol(handle, b"sparsec_model_info", where)
        library.workspace_size = <workspace_function>_symbol(
            handle, b"sparsec_workspace_size", where
        )
        library.run = <run_function>_symbol(handle, b"sparsec_run", where)
        info = get_info()
        if info.abi_version != SPARSEC_ABI_VERSION:
            raise ArtifactError(
                f"{where} has ABI {info.abi_version}, this sparsec reads ABI {SPARSEC_ABI_VERSION}"
            )
        library.bad_index = <bad_index_function>_symbol(handle, b"sparsec_bad_index", where)
        found = (
            info.length, info.n_inputs, info.n_outputs, info.supports_lengths, info.mask_input,
            info.padding,
        )
        expected = (
            length, self._n_inputs, self._n_outputs, int(self._supports_lengths), self._mask,
            self._padding,
        )
        if found != expected:
            raise ArtifactError(
                f"{where} does not fit the manifest: (length, inputs, outputs, supports_lengths, "
                f"mask_input, padding) are {found}, expected {expected}"
            )
        _compare(where, "input", info.inputs, self._inputs, self._input_names)
        _compare(where, "output", info.outputs, self._outputs, self._output_names)
        return 0

    # ---- properties ------------------------------------------------------------------------------

    @property
    def artifact(self):
        """The artifact that was loaded."""
        return self._artifact

    @property
    def input_names(self):
        """Names of the inputs, in order."""
        return list(self._input_names)

    @property
    def output_names(self):
        """Names of the outputs, in order."""
        return list(self._output_names)

    @property
    def inputs(self):
        """Name, dtype and shape of each input."""
        return self._artifact.manifest.inputs

    @property
    def outputs(self):
        """Name, dtype and shape of each output."""
        return self._artifact.manifest.outputs

    @property
    def buckets(self):
        """Sequence lengths that are loaded, ascending."""
        return list(self._buckets)

    @property
    def num_cores(self):
        """Threads that a call may use, the caller included."""
        return self._team.threads

    @property
    def skip_padding(self):
        """Whether calls skip padding unless they say otherwise; False for a model that cannot."""
        return self._skip_padding and self._can_skip

    @property
    def closed(self):
        """Whether :meth:`close` was called."""
        return self._closed

    def __reduce__(self):
        """Pickled as its path and options: whoever reads it opens what is there then."""
        self._check_open()
        options = {"skip_padding": bool(self._skip_padding), "buckets": list(self._buckets)}
        return open_again, (type(self), self._path, self._num_cores, options)

    def library_handle(self, length):
        """What dlopen gave for a bucket's library, for ctypes; good until the engine is closed."""
        self._check_open()
        return self._loaded[self._buckets.index(length)].handle

    def __repr__(self):
        state = "closed" if self._closed else f"buckets {list(self._buckets)}"
        path = self._artifact.path if self._artifact is not None else None
        return f"<{type(self).__name__} {str(path)!r}, {state}, {self._team.threads} cores>"

    # ---- life ------------------------------------------------------------------------------------

    def __enter__(self):
        self._check_open()
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Wait for running calls, then unload the libraries.  Later calls raise EngineClosedError."""
        self._closed = True
        self._notice_fork()
        while self._running > 0:
            if self._all_returned is None:
                self._all_returned = threading.Event()
            self._all_returned.wait()
        self._release()

    cdef void _release(self) noexcept:
        """Free workspaces and libraries; harmless when repeated."""
        cdef int i
        for i in range(self._n_idle):
            free(self._idle_blocks[i].data)
        self._n_idle = 0
        self._n_libraries = 0
        free(self._libraries)
        self._libraries = NULL
        self._loaded = None

    cdef int _check_open(self) except -1:
        if self._closed:
            raise EngineClosedError("the engine is closed: create a new Engine")
        return 0

    cdef void _notice_fork(self) noexcept:
        """In a forked child the threads that were running calls do not exist."""
        cdef uint32_t generation = sparsec_pool_generation()
        if generation != self._generation:
            self._generation = generation
            self._running = 0
            self._all_returned = None

    # ---- running ---------------------------------------------------------------------------------

    def __call__(self, inputs, feed=None, *, skip_padding=None):
        """The same as :meth:`run`."""
        return self.run(inputs, feed, skip_padding=skip_padding)

    def run(self, inputs, feed=None, *, skip_padding=None):
        """Run the model on a batch.

        ``run(inputs)``, or ``run(output_names, inputs)`` as sessions of ONNX Runtime have it.

        Args:
            inputs: one array per input, as a list in the order of `input_names` or a mapping by
                name.  Arrays may be numpy's, tensors of other libraries (PyTorch's; any with
                ``__dlpack__`` or ``__array__``), or lists of numbers.  Extents "batch" and
                "sequence" are the caller's: any batch size from 1, any length from 1 to the largest
                bucket.  With `feed`: names of the outputs to return, or None for all.
            feed: the inputs, if the first argument is names of outputs.
            skip_padding: overrides the engine's.

        Returns:
            One numpy array per output, in the order of `output_names` (or of the names given), with
            the caller's batch and length.

        Raises:
            InputError: the inputs do not fit the model; the message says which and why.  That an
                index (a token id, say) is outside its table is noticed, unless it stands where
                padding is skipped.
            EngineClosedError: the engine was closed.
        """
        if feed is None:
            return self._run(inputs, skip_padding)
        chosen = self._chosen_outputs(inputs)
        outputs = self._run(feed, skip_padding)
        return outputs if chosen is None else [outputs[i] for i in chosen]

    cdef list _chosen_outputs(self, names):
        """Indices of the outputs to return; None: all of them."""
        if names is None:
            return None
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise InputError(
                f"names of outputs must be None or a list of names, not {type(names).__name__}"
            )
        unknown = [str(name) for name in names if name not in self._output_names]
        if unknown:
            raise InputError(
                f"the model has no output {', '.join(unknown)}; "
                f"it has {', '.join(self._output_names)}"
            )
        return [self._output_names.index(name) for name in names]

    cdef list _run(self, inputs, skip_padding):
        cdef Call call
        cdef bint skip = self._skip_padding if skip_padding is None else bool(skip_padding)
        cdef int i
        self._check_open()
        self._notice_fork()
        memset(&call, 0, sizeof(Call))
        call.batch = call.length = -1
        call.views = <Py_buffer *>PyMem_Calloc(
            1, self._n_inputs * sizeof(Py_buffer) + 2 * (self._n_inputs + self._n_outputs) * sizeof(void *)
        )
        if call.views == NULL:
            raise MemoryError()
        call.inputs = <const void **>(call.views + self._n_inputs)
        call.padded_inputs = <char **>(call.inputs + self._n_inputs)
        call.outputs = <void **>(call.padded_inputs + self._n_inputs)
        call.padded_outputs = <char **>(call.outputs + self._n_outputs)
        self._running += 1
        try:
            self._take_inputs(inputs, &call)
            return self._compute(&call, skip)
        finally:
            for i in range(call.held):
                PyBuffer_Release(&call.views[i])
            PyMem_Free(call.views)
            self._running -= 1
            if self._running == 0 and self._all_returned is not None:
                self._all_returned.set()

    cdef int _take_inputs(self, inputs, Call *call) except -1:
        """Check the inputs and hold on to their buffers, converted where that is safe."""
        cdef Py_buffer *view
        cdef Tensor *spec
        cdef int i, a
        cdef int64_t extent
        cdef object array
        cdef list arrays = self._in_order(inputs)
        for i in range(self._n_inputs):
            array = arrays[i]
            if not isinstance(array, np.ndarray):
                array = as_array(self._input_names[i], array, self._input_dtypes[i])
            if array.dtype is not self._input_dtypes[i]:
                array = _converted(self._input_names[i], array, self._input_dtypes[i])
            view = &call.views[i]
            spec = &self._inputs[i]
            PyObject_GetBuffer(array, view, PyBUF_STRIDED_RO)
            if (
                not PyBuffer_IsContiguous(view, b"C")
                or <uintptr_t>view.buf % <uintptr_t>spec.itemsize
            ):
                PyBuffer_Release(view)
                PyObject_GetBuffer(np.array(array, order="C"), view, PyBUF_STRIDED_RO)
            call.held += 1
            call.inputs[i] = view.buf
            if view.ndim != spec.rank:
                raise InputError(f"{self._describe(i)} has rank {spec.rank}, not {view.ndim}")
            for a in range(spec.rank):
                extent = view.shape[a]
                if spec.dims[a] == BATCH:
                    if extent == 0:
                        raise InputError(f"{self._describe(i)} has an empty batch")
                    if call.batch < 0:
                        call.batch = extent
                    elif call.batch != extent:
                        raise self._disagreement(i, call, "batch")
                elif spec.dims[a] == SEQUENCE:
                    if extent == 0:
                        raise InputError(f"{self._describe(i)} has sequences of length 0")
                    if call.length < 0:
                        call.length = extent
                    elif call.length != extent:
                        raise self._disagreement(i, call, "sequence")
                elif spec.dims[a] != extent:
                    raise InputError(
                        f"{self._describe(i)}, not {_shape(view)}: axis {a} must be {spec.dims[a]}"
                    )
        if call.batch < 0:
            call.batch = 1
        return 0

    cdef list _in_order(self, inputs):
        """The inputs as a list in the model's order."""
        if isinstance(inputs, (list, tuple)):
            if len(inputs) != self._n_inputs:
                raise InputError(
                    f"the model takes {self._n_inputs} inputs "
                    f"({', '.join(self._input_names)}), not {len(inputs)}"
                )
            return list(inputs)
        if isinstance(inputs, Mapping):
            missing = [name for name in self._input_names if name not in inputs]
            unknown = [str(name) for name in inputs if name not in self._input_names]
            if missing or unknown:
                raise InputError(
                    f"the model takes inputs {', '.join(self._input_names)}"
                    + (f"; missing: {', '.join(missing)}" if missing else "")
                    + (f"; unknown: {', '.join(unknown)}" if unknown else "")
                )
            return [inputs[name] for name in self._input_names]
        raise InputError(
            f"inputs must be a list of arrays or a dict of arrays by name, "
            f"not {type(inputs).__name__}"
        )

    cdef str _describe(self, int i):
        """An input and its shape, for error messages."""
        return f"input {self._artifact.manifest.inputs[i]}"

    cdef object _disagreement(self, int i, Call *call, str what):
        """The error for inputs that differ in the batch size or the length."""
        cdef int j
        shapes = ", ".join(
            [f"{self._input_names[j]} {_shape(&call.views[j])}" for j in range(i + 1)]
        )
        return InputError(f"inputs disagree on the extent {what!r}: {shapes}")

    cdef object _outside(self, const sparsec_index_error *bad, int64_t batch, int64_t bucket):
        """The error for an index outside its table."""
        cdef Py_ssize_t shape[MAX_RANK]
        cdef Tensor *spec
        table = bad.table.decode(errors="replace")
        node = bad.node.decode(errors="replace")
        where = f"outside the table {table!r} of {bad.extent}"
        where += f" (node {node!r})" if node else ""
        if bad.extent > 0:
            where += f": valid are {-bad.extent} to {bad.extent - 1}"
        if bad.input < 0:
            return InputError(
                f"the model looks up index {bad.index}, {where}.  The index is no "
                f"input but the model's own: is a sequence longer than it allows, or a batch smaller?"
            )
        spec = &self._inputs[bad.input]
        extents(spec, batch, bucket, shape)
        place = np.unravel_index(bad.position, _tuple(shape, spec.rank))
        return InputError(
            f"input {self._input_names[bad.input]!r} has {bad.index} at "
            f"[{', '.join([str(int(i)) for i in place])}], {where}.  Do the tokenizer and the "
            f"model belong together?"
        )

    cdef list _compute(self, Call *call, bint skip):
        cdef Library *library = NULL
        cdef Tensor *spec
        cdef Block block
        cdef Py_ssize_t shape[MAX_RANK]
        cdef Py_ssize_t whole[MAX_RANK]
        cdef Py_ssize_t before
        cdef size_t workspace, need
        cdef int64_t bucket, row, full
        cdef int32_t *lengths = NULL
        cdef char *cursor
        cdef int i, a, status
        cdef int threads = self._team.threads
        cdef bint padding
        cdef sparsec_index_error bad

        for i in range(self._n_libraries):
            if self._libraries[i].length >= call.length:
                library = &self._libraries[i]
                break
        if library == NULL:
            raise InputError(
                f"the sequence length {call.length} is above the largest bucket, "
                f"{self._buckets[-1]}: truncate the input or compile a larger bucket"
            )
        bucket = library.length
        if call.length < 0:
            call.length = bucket
        padding = call.length < bucket
        if padding and self._padding == SPARSEC_PADDING_EXACT:
            raise InputError(
                f"padding from length {call.length} to the bucket {bucket} would change this "
                f"model's outputs ({self._artifact.manifest.padding.reason}): give sequences of a "
                f"bucket's length ({', '.join(map(str, self._buckets))}) or compile a bucket "
                f"{call.length}"
            )
        skip = skip and self._can_skip

        # One block: the workspace, then lengths, padded inputs, padded outputs.
        workspace = round_up(library.workspace_size(call.batch, threads))
        need = workspace + round_up(call.batch * sizeof(int32_t))
        if padding:
            for i in range(self._n_inputs):
                if self._inputs[i].sequence_axes:
                    need += round_up(byte_size(&self._inputs[i], call.batch, bucket))
            for i in range(self._n_outputs):
                if self._outputs[i].sequence_axes:
                    need += round_up(byte_size(&self._outputs[i], call.batch, bucket))
        cdef list results = []
        self._take_block(&block, need)
        try:
            cursor = <char *>block.data + workspace
            if padding or skip:
                lengths = <int32_t *>cursor
            cursor += round_up(call.batch * sizeof(int32_t))
            if padding:
                for i in range(self._n_inputs):
                    if self._inputs[i].sequence_axes:
                        call.padded_inputs[i] = cursor
                        cursor += round_up(byte_size(&self._inputs[i], call.batch, bucket))
            for i in range(self._n_outputs):
                spec = &self._outputs[i]
                extents(spec, call.batch, call.length, shape)
                if padding and spec.sequence_axes:
                    before = 1
                    for a in range(spec.sequence_axis):
                        before *= shape[a]
                    if before == 1 and spec.sequence_axes == 1:
                        # The part that the caller gets is contiguous: no copy, a view will do.
                        shape[spec.sequence_axis] = bucket
                    else:
                        call.padded_outputs[i] = cursor
                        cursor += round_up(byte_size(spec, call.batch, bucket))
                array = np.empty(_tuple(shape, spec.rank), self._output_dtypes[i])
                call.outputs[i] = _data(array)
                if padding and spec.sequence_axes and call.padded_outputs[i] == NULL:
                    array = array[
                        (slice(None),) * spec.sequence_axis + (slice(0, call.length),)
                    ]
                results.append(array)

            with nogil:
                if lengths != NULL:
                    full = 0
                    for row in range(call.batch):
                        lengths[row] = <int32_t>call.length
                        if skip:
                            lengths[row] = <int32_t>real_tokens(
                                <const char *>call.inputs[self._mask]
                                + row * call.length * self._inputs[self._mask].itemsize,
                                call.length, self._inputs[self._mask].code,
                            )
                        full += lengths[row] == bucket
                    if full == call.batch:
                        lengths = NULL
                for i in range(self._n_inputs):
                    if call.padded_inputs[i] != NULL:
                        spec = &self._inputs[i]
                        extents(spec, call.batch, call.length, shape)
                        extents(spec, call.batch, bucket, whole)
                        memset(call.padded_inputs[i], 0, byte_size(spec, call.batch, bucket))
                        copy_corner(call.padded_inputs[i], whole, <const char *>call.inputs[i],
                                    shape, spec.rank, spec.itemsize)
                        call.inputs[i] = call.padded_inputs[i]
                # From here on call.outputs says where the library writes; the caller's array is kept.
                for i in range(self._n_outputs):
                    if call.padded_outputs[i] != NULL:
                        call.outputs[i], call.padded_outputs[i] = (
                            call.padded_outputs[i], <char *>call.outputs[i]
                        )
                sparsec_pool_enter()
                status = library.run(
                    call.inputs, call.outputs, call.batch, lengths, block.data,
                    &self._team if threads > 1 else NULL,
                )
                sparsec_pool_leave()
                for i in range(self._n_outputs):
                    if call.padded_outputs[i] != NULL and status == SPARSEC_OK:
                        spec = &self._outputs[i]
                        extents(spec, call.batch, call.length, shape)
                        extents(spec, call.batch, bucket, whole)
                        copy_corner(call.padded_outputs[i], shape, <const char *>call.outputs[i],
                                    whole, spec.rank, spec.itemsize)
                if status == SPARSEC_BAD_INDEX:
                    library.bad_index(block.data, &bad)
        finally:
            self._return_block(&block)
        if status == SPARSEC_BAD_INDEX:
            raise self._outside(&bad, call.batch, bucket)
        if status != SPARSEC_OK:
            raise SparsecError(
                f"{self._artifact.path}: bucket {bucket} refused to run (status {status}) "
                f"a batch of {call.batch}"
            )
        return results

    cdef int _take_block(self, Block *block, size_t size) except -1:
        """An idle block of at least `size` bytes, the smallest that fits, or a new one."""
        cdef int i, best = -1
        for i in range(self._n_idle):
            if self._idle_blocks[i].size >= size and (
                best < 0 or self._idle_blocks[i].size < self._idle_blocks[best].size
            ):
                best = i
        if best >= 0:
            block[0] = self._idle_blocks[best]
            self._n_idle -= 1
            self._idle_blocks[best] = self._idle_blocks[self._n_idle]
            return 0
        if self._n_idle > 0:  # all are too small: replace one, so that they do not pile up
            self._n_idle -= 1
            free(self._idle_blocks[self._n_idle].data)
        block.data = block_alloc(size)
        block.size = size
        if block.data == NULL:
            raise MemoryError(f"a workspace of {size} bytes cannot be allocated")
        return 0

    cdef void _return_block(self, Block *block) noexcept:
        if self._n_idle < MAX_IDLE:
            self._idle_blocks[self._n_idle] = block[0]
            self._n_idle += 1
        else:
            free(block.data)


# ---- helpers -------------------------------------------------------------------------------------


cdef void *_symbol(void *handle, const char *name, str library) except NULL:
    cdef void *symbol = dlsym(handle, name)
    if symbol == NULL:
        raise ArtifactError(f"{library} is no sparsec library: it has no {name.decode()}")
    return symbol


cdef Tensor *_tensors(specs) except? NULL:
    """C form of a manifest's tensors; freed with PyMem_Free."""
    cdef Tensor *tensors = <Tensor *>PyMem_Calloc(len(specs) or 1, sizeof(Tensor))
    cdef int i, a
    if tensors == NULL:
        raise MemoryError()
    for i, spec in enumerate(specs):
        tensors[i].code = ELEMENTS[spec.dtype].number
        tensors[i].itemsize = np.dtype(spec.dtype).itemsize
        tensors[i].rank = len(spec.shape)
        for a, extent in enumerate(spec.shape):
            tensors[i].dims[a] = {"batch": BATCH, "sequence": SEQUENCE}.get(extent, extent)
            if extent == "sequence":
                if not tensors[i].sequence_axes:
                    tensors[i].sequence_axis = a
                tensors[i].sequence_axes += 1
    return tensors


cdef int _compare(
    str where, str kind, const sparsec_tensor *found, const Tensor *expected, tuple names
) except -1:
    """Check that a library's tensors are those of the manifest."""
    cdef int i, a
    for i in range(len(names)):
        has = [found[i].name.decode(errors="replace"), found[i].dtype]
        has += [found[i].dims[a] for a in range(min(found[i].rank, <int32_t>MAX_RANK))]
        wants = [names[i], expected[i].code] + [expected[i].dims[a] for a in range(expected[i].rank)]
        if has != wants:
            raise ArtifactError(
                f"{where} does not fit the manifest: {kind} {i} (name, type, extents) is {has}, "
                f"expected {wants}"
            )
    return 0


cdef tuple _tuple(const Py_ssize_t *shape, int rank):
    cdef int a
    return tuple([shape[a] for a in range(rank)])


cdef list _shape(const Py_buffer *view):
    cdef int a
    return [view.shape[a] for a in range(view.ndim)]


cdef void *_data(array) except? NULL:
    """Where the elements of an array are that the caller keeps alive."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_STRIDED_RO)
    cdef void *data = view.buf
    PyBuffer_Release(&view)
    return data


def _converted(str name, array, dtype):
    """The array in another dtype, where no value can change.

    Raises:
        InputError: the conversion could lose something, or is more likely a mistake.
    """
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "biu" and dtype.kind in "iu":
        if np.can_cast(array.dtype, dtype, "safe"):
            return array.astype(dtype)
        limits = np.iinfo(dtype)
        if array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max):
            return array.astype(dtype)
        raise InputError(f"input {name!r} is {array.dtype} and holds values that {dtype} cannot")
    if array.dtype.kind == "f" == dtype.kind and np.can_cast(array.dtype, dtype, "safe"):
        return array.astype(dtype)
    raise InputError(
        f"input {name!r} must be {dtype}, not {array.dtype}: "
        f"convert it with .astype('{dtype}') if that is what you mean"
    )


def open_again(kind, path, num_cores, options):
    """An Engine of a class, as it was pickled."""
    return kind(path, num_cores, **options)


def _open(path, cpu, buckets):
    """(the artifact, lengths to load, their libraries); what is replaced meanwhile is read again."""
    known = path if isinstance(path, Artifact) else None
    folder = known.path if known is not None else user_path(path)
    while True:
        before = read_manifest(folder)
        try:
            artifact = known if known is not None else Artifact.load(folder, verify=False)
            artifact = artifact.best(cpu)
            lengths = _chosen_buckets(artifact, buckets)
            loaded = [load(artifact, length) for length in lengths]
            artifact.check_files()
            return artifact, lengths, loaded
        except ArtifactError:
            if known is None and read_manifest(folder) != before:
                continue
            if known is not None and parse_manifest(before).files != known.manifest.files:
                raise ArtifactError(
                    f"{folder} was replaced after this Artifact was loaded: load it again"
                ) from None
            raise


def _chosen_buckets(artifact, buckets):
    """The lengths to load, ascending."""
    if buckets is None:
        return artifact.buckets
    chosen = tuple(sorted(set(wholes("buckets", buckets))))
    unknown = [length for length in chosen if length not in artifact.buckets]
    if unknown or not chosen:
        raise InputError(
            f"{artifact.path} has buckets {list(artifact.buckets)}, not {unknown or 'none'}"
        )
    return chosen


def _spin_ns():
    """How long threads spin: SPARSEC_SPIN_US microseconds, or the pool's default."""
    text = os.environ.get("SPARSEC_SPIN_US", "")
    if not text:
        return SPARSEC_POOL_SPIN_NS
    if not text.isdecimal() or int(text) > 1_000_000:
        raise InputError(f"SPARSEC_SPIN_US must be a number from 0 to 1000000, not {text!r}")
    return int(text) * 1000


def cpu_probe():
    """The processor's name, its features, and the sizes of its L1d, L2 and L3 caches (0: unknown)."""
    cdef char brand[64]
    cdef uint64_t caches[3]
    cdef uint64_t mask = sparsec_cpu_features()
    cdef int i
    sparsec_cpu_brand(brand)
    sparsec_cpu_caches(caches)
    names = []
    for i in range(64):
        if mask >> i & 1:
            names.append(sparsec_cpu_feature_name(i).decode())
    return brand.decode("ascii", "replace"), names, [caches[0], caches[1], caches[2]]


def cpu_identity():
    """Who made the processor ("" when unknown), and its family and model as Linux counts them."""
    cdef char vendor[16]
    cdef uint32_t family, model
    sparsec_cpu_identity(vendor, &family, &model)
    return vendor.decode("ascii", "replace"), family, model


def pool_workers():
    """Worker threads that this process has at the moment."""
    return sparsec_pool_workers()


def pool_stop():
    """End the worker threads; the next parallel run starts new ones."""
    with nogil:
        sparsec_pool_stop()
