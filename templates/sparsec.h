/* sparsec.h: the C interface of a compiled bucket (one shared library per sequence-length bucket).
 *
 * A bucket library needs nothing but libc and libm.  Load it with dlopen() or link it, then:
 *
 *     const sparsec_info *info = sparsec_model_info();
 *     void *ws = aligned_alloc(64, sparsec_workspace_size(batch, 1));
 *     sparsec_run(inputs, outputs, batch, NULL, ws, NULL);
 *
 * All functions are safe to call from many threads at once, each call with a workspace of its own.
 *
 * In an artifact for several targets, bucket_N.so loads the library of the fastest that this machine can run,
 * from its own folder; load nothing else.  If none can, sparsec_model_info() gives NULL, sparsec_run()
 * SPARSEC_REFUSED.  The environment variable SPARSEC_CPU_FEATURES ("avx2,fma", "none") hides CPU features.
 *
 * dlopen() knows libraries by their path: while one is open, the same path gives the same library, even
 * if the file has been replaced.  To change models in a running program, give each version a folder of
 * its own and open that; or dlclose() the old one first.  Never overwrite a library that is open:
 * rename the old folder away and the new one into its place.
 */
#ifndef SPARSEC_H
#define SPARSEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever anything below changes its meaning. */
#define SPARSEC_ABI_VERSION 2

#define SPARSEC_MAX_RANK 8

/* Element types; the numbers are those of ONNX TensorProto.DataType. */
enum {
    SPARSEC_FLOAT32 = 1,
    SPARSEC_UINT8 = 2,
    SPARSEC_INT8 = 3,
    SPARSEC_UINT16 = 4,
    SPARSEC_INT16 = 5,
    SPARSEC_INT32 = 6,
    SPARSEC_INT64 = 7,
    SPARSEC_BOOL = 9,
    SPARSEC_FLOAT64 = 11,
    SPARSEC_UINT32 = 12,
    SPARSEC_UINT64 = 13
};

/* Markers in sparsec_tensor.dims. */
#define SPARSEC_DIM_BATCH (-1)    /* the batch size given to sparsec_run */
#define SPARSEC_DIM_SEQUENCE (-2) /* the bucket's length, sparsec_info.length */

typedef struct {
    const char *name;
    int32_t dtype;
    int32_t rank;
    int64_t dims[SPARSEC_MAX_RANK];
} sparsec_tensor;

/* What becomes of a sequence shorter than the bucket, filled up with zeros in all inputs. */
enum {
    SPARSEC_PADDING_MASKED = 0,  /* its results are right */
    SPARSEC_PADDING_LENGTHS = 1, /* they are right where sparsec_run is given the lengths */
    SPARSEC_PADDING_EXACT = 2    /* they are not: sequences must have the bucket's length */
};

typedef struct {
    uint32_t abi_version;
    uint32_t length;           /* tokens per sequence in this bucket */
    const char *model;         /* name of the model */
    const char *target;        /* ISA target it was compiled for, e.g. "avx512_vnni" */
    int32_t n_inputs, n_outputs;
    const sparsec_tensor *inputs, *outputs;
    int32_t supports_lengths;  /* 1: sparsec_run skips padding when given lengths */
    int32_t mask_input;        /* index of the input whose zeros keep a token from all results, or -1 */
    int32_t padding;           /* SPARSEC_PADDING_... */
} sparsec_info;

/* One piece of a parallel loop: index is in [0, count), thread in [0, threads). */
typedef void (*sparsec_task)(void *arg, int32_t index, int32_t thread);

/* How a bucket runs its loops on several threads; implemented by the caller. */
typedef struct sparsec_parallel sparsec_parallel;
struct sparsec_parallel {
    int32_t threads; /* at most this many threads run pieces at once, the caller included */
    /* Calls task(arg, i, t) once for each i in [0, count) and returns when all are done.  Two pieces
     * that run at the same time have different t. */
    void (*run)(const sparsec_parallel *self, sparsec_task task, void *arg, int32_t count);
};

enum {
    SPARSEC_OK = 0,
    SPARSEC_BAD_ARGUMENT = 1, /* a null pointer, batch < 1, or a length outside [0, length] */
    SPARSEC_BAD_INDEX = 2,    /* an index outside its table; sparsec_bad_index() says which */
    SPARSEC_REFUSED = 3       /* the system does not let this process use what the code needs; see below */
};

/* An index that is outside the table which the model looks it up in.  Right would have been
 * -extent <= index < extent: as in ONNX, negative indices count from the end. */
typedef struct {
    int64_t index;
    int64_t extent;    /* of the table, along the axis that is indexed */
    const char *table; /* name in the model of the tensor that is the table, UTF-8; never NULL */
    const char *node;  /* name(s) in the model of the node(s) that look it up, UTF-8; may be empty */
    int32_t input;     /* number of the input that holds the index; -1: the model computed it */
    int64_t position;  /* which element of that input it is, counted row-major; -1: computed */
} sparsec_index_error;

const sparsec_info *sparsec_model_info(void);

/* Bytes of scratch memory that one call of sparsec_run needs. */
size_t sparsec_workspace_size(int64_t batch, int32_t threads);

/* Computes the outputs of a batch.
 *   inputs, outputs  one pointer each, dense row-major, in the order and types of sparsec_model_info()
 *   batch            number of sequences, at least 1
 *   lengths          NULL, or for each sequence how many leading tokens are real; the others are not
 *                    computed and their outputs are 0 (unless supports_lengths is 0: then lengths only
 *                    tell which tokens may hold any indices)
 *   workspace        sparsec_workspace_size(batch, threads) bytes, 64-byte aligned
 *   parallel         NULL: run on the calling thread
 * Returns SPARSEC_OK or an error.  Outputs are untouched after SPARSEC_BAD_ARGUMENT and SPARSEC_REFUSED, and
 * unspecified after SPARSEC_BAD_INDEX.  Indices of tokens that are padding by `lengths` are never an error.
 *
 * A library for target "amx" asks Linux on its first run for tile registers, which the system saves only
 * for processes that have asked: arch_prctl(ARCH_REQ_XCOMP_PERM, 18), for all threads and later forks.
 * SPARSEC_REFUSED says that it was refused: by a system older than Linux 5.16, by a filter of system calls,
 * or because a thread has an alternate signal stack (sigaltstack) smaller than getauxval(AT_MINSIGSTKSZ),
 * which signals with these registers would overflow; from then on Linux refuses such stacks instead.  To know
 * before, or to ask before threads start, make the call yourself (examples/c/threads.c).  Each piece of work
 * configures the calling thread's tiles and releases them before it returns: what the caller keeps in tiles
 * is lost.
 *
 * Computations round to nearest, raise no floating-point exceptions, and take denormal numbers (float32:
 * below 1.2e-38) for 0, those of inputs too, where the processor has SSE (MXCSR: FTZ and DAZ).  Each piece
 * of work sets that on the thread that it runs on, and gives the thread its own mode and flags back before
 * it returns: neither the caller nor parallel->run nor its threads ever see it. */
int sparsec_run(const void *const *inputs, void *const *outputs, int64_t batch,
                const int32_t *lengths, void *workspace, const sparsec_parallel *parallel);

/* Which index was wrong, after sparsec_run returned SPARSEC_BAD_INDEX with this workspace and before the
 * workspace is used for anything else.  Of several it is one of those that are looked up first.
 * The strings live as long as the library is loaded.
 * Returns SPARSEC_OK, or SPARSEC_BAD_ARGUMENT and leaves *error alone: a null pointer, or the last run in
 * this workspace met no such index. */
int sparsec_bad_index(const void *workspace, sparsec_index_error *error);

#ifdef __cplusplus
}
#endif
#endif
