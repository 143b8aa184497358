/* rt.h: what every kernel of a bucket sees at run time. */
#ifndef SPARSEC_RT_H
#define SPARSEC_RT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "sparsec.h"

#define SPARSEC_INLINE static inline __attribute__((always_inline, unused))
#define SPARSEC_KERNEL static __attribute__((noinline, unused))

/* How the thread computes with floats: rounding to nearest, no traps, and denormal numbers (below 2^-126) taken
 * for 0 and made 0: on some processors each of them costs more than a hundred cycles.  Where work begins
 * on a thread, the caller's setting is put away, with the flags of what has happened so far; it returns
 * as it was where the work ends, and around calls of what belongs to the caller.  On processors without
 * SSE nothing is set. */
typedef uint32_t sparsec_float_mode;

#ifndef SPARSEC_FLOAT_MODE
#define SPARSEC_FLOAT_MODE 0x9fc0 /* of MXCSR: flush to zero, denormals are zeros, all exceptions masked */
#endif

SPARSEC_INLINE void sparsec_float_return(sparsec_float_mode mode)
{
    (void)mode;
#ifdef __SSE__
    __asm__ volatile("ldmxcsr %0" : : "m"(mode) : "memory");
#endif
}

SPARSEC_INLINE sparsec_float_mode sparsec_float_enter(void)
{
    sparsec_float_mode mode = 0;
#ifdef __SSE__
    __asm__ volatile("stmxcsr %0" : "=m"(mode) : : "memory");
    sparsec_float_return(SPARSEC_FLOAT_MODE);
#endif
    return mode;
}

/* Rows of a row tensor, as they lie in lanes.  Row r is lane r % 16 of block r / 16. */
typedef struct {
    int64_t rows;         /* up to the last that is real, padding rows between sequences included */
    int64_t blocks;       /* ceil(rows / 16) */
    const int32_t *flat;  /* [blocks*16] index of the row in the row-major tensor, -1 for padding */
    const int32_t *pos;   /* [blocks*16] position in its sequence, 0 for padding */
} sparsec_rows;

/* Rows of a block that are there. */
#define ROWS_OF(rows_, blk) \
    ((int32_t)((rows_)->rows - (blk) * 16 < 16 ? (rows_)->rows - (blk) * 16 : 16))

/* A place in the model where an index meets a table. */
typedef struct {
    const char *table, *node; /* names in the model */
    int32_t input;            /* input that the indices are, or -1: they are computed */
    int64_t step;             /* indices of a sequence; 0: they are not ordered by sequences */
    int64_t token;            /* of these, the indices of a token; 0: they are not ordered by tokens */
} sparsec_site;

/* The first index that was found outside its table. */
typedef struct {
    int32_t lock;
    int32_t found;             /* 0: there was none */
    int32_t site;
    sparsec_index_error error; /* its position is counted from the sequences at hand */
} sparsec_fault;

typedef struct {
    int64_t batch;                    /* sequences at hand */
    sparsec_float_mode caller;        /* of the thread that called */
    const sparsec_parallel *parallel; /* NULL: serial */
    int32_t threads;
    sparsec_rows token;               /* rows are tokens */
    sparsec_rows item;                /* rows are sequences */
    const int32_t *seq_start;         /* [batch] first row of each sequence, a multiple of 4 */
    const int32_t *seq_len;           /* [batch] real tokens of each sequence */
    const int32_t *query_seq;         /* [queries] sequence of each piece of attention work */
    const int32_t *query_block;       /* [queries] its block of 16 query rows */
    int32_t queries;
    char *scratch;                    /* threads * scratch_size bytes */
    size_t scratch_size;
    char *local;                      /* what stages keep between their kernels */
    size_t local_size;                /* of it, the bytes of one thread */
    char *const *buf;                 /* buffers by number */
    int32_t ragged;                   /* lengths were given: some rows may be absent */
    const int32_t *real;              /* [batch] real tokens of each sequence; NULL: all */
    const sparsec_site *sites;        /* by number, in the order of work */
    sparsec_fault *fault;
} sparsec_rt;

/* What a kernel works with for a piece of rows: its thread's memory, and the buffers that hold only
 * these rows. */
typedef struct {
    char *scratch;
    char *local;
    int64_t first, blocks; /* the rows, in blocks of 16 */
} sparsec_tile;

/* Pieces of work for the caller's threads. */
typedef struct {
    sparsec_task task;
    void *arg;
} sparsec_pieces;

static __attribute__((unused)) void sparsec_piece(void *arg, int32_t index, int32_t thread)
{
    const sparsec_pieces *const pieces = arg;
    const sparsec_float_mode mode = sparsec_float_enter();
    pieces->task(pieces->arg, index, thread);
    sparsec_float_return(mode);
}

SPARSEC_INLINE void sparsec_for(const sparsec_rt *rt, sparsec_task task, void *arg, int32_t count)
{
    if (rt->parallel && count > 1) {
        sparsec_pieces pieces = {task, arg};
        sparsec_float_return(rt->caller);
        rt->parallel->run(rt->parallel, sparsec_piece, &pieces, count);
        (void)sparsec_float_enter();
        return;
    }
    for (int32_t i = 0; i < count; i++)
        task(arg, i, 0);
}

/* Takes a number into an extreme that threads share, which is 0 at first: the greatest of all, or, with
 * `least`, the least.  NaN is beyond all numbers. */
static inline __attribute__((unused)) void sparsec_extreme(float *extreme, float x, int least)
{
    typedef uint32_t __attribute__((may_alias)) word;
    const uint32_t sign = least ? 0x80000000u : 0;
    uint32_t bits, old = __atomic_load_n((word *)extreme, __ATOMIC_RELAXED);
    memcpy(&bits, &x, sizeof bits);
    bits &= 0x7fffffff; /* of numbers of one sign, the greater bits are those further from 0 */
    if (bits)
        while ((bits | sign) > old
               && !__atomic_compare_exchange_n((word *)extreme, &old, bits | sign, 1, __ATOMIC_RELAXED,
                                               __ATOMIC_RELAXED))
            ;
}

/* What to read in place of an index that is outside, so that no input can make a kernel read or write
 * beyond its table; takes the first such index down.  A negative `position` is that of a row of padding,
 * whose index is nobody's. */
static __attribute__((cold, noinline, unused)) int64_t sparsec_outside(
    const sparsec_rt *rt, int32_t number, int64_t index, int64_t extent, int64_t position)
{
    const sparsec_site *const site = rt->sites + number;
    sparsec_fault *const fault = rt->fault;
    int counts = position >= 0;
    if (counts && rt->real && site->token)
        counts = position % site->step / site->token < rt->real[position / site->step];
    if (counts) {
        while (__atomic_exchange_n(&fault->lock, 1, __ATOMIC_ACQUIRE))
            ;
        if (!fault->found || number < fault->site
            || (number == fault->site && position < fault->error.position)) {
            fault->found = 1;
            fault->site = number;
            fault->error = (sparsec_index_error){index, extent, site->table, site->node, site->input, position};
        }
        __atomic_store_n(&fault->lock, 0, __ATOMIC_RELEASE);
    }
    return index < 0 || extent < 1 ? 0 : extent - 1;
}

/* An index -n <= i < n, counted from the start. */
SPARSEC_INLINE int64_t sparsec_index(const sparsec_rt *rt, int32_t number, int64_t i, int64_t n, int64_t position)
{
    const int64_t at = i < 0 ? i + n : i;
    return __builtin_expect((uint64_t)at < (uint64_t)n, 1) ? at : sparsec_outside(rt, number, i, n, position);
}

#endif
