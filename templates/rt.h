/* rt.h: what every kernel of a bucket sees at run time. */
#ifndef SPARSEC_RT_H
#define SPARSEC_RT_H

#include <stddef.h>
#include <stdint.h>

#include "sparsec.h"

#define SPARSEC_INLINE static inline __attribute__((always_inline, unused))
#define SPARSEC_KERNEL static __attribute__((noinline, unused))

/* Rows of a row tensor, as they lie in lanes.  Row r is lane r % 16 of block r / 16. */
typedef struct {
    int64_t rows;         /* rows in use, padding rows between sequences included */
    int64_t blocks;       /* ceil(rows / 16) */
    const int32_t *flat;  /* [blocks*16] index of the row in the row-major tensor, -1 for padding */
    const int32_t *pos;   /* [blocks*16] position in its sequence, 0 for padding */
} sparsec_rows;

typedef struct {
    int64_t batch;                    /* sequences at hand */
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
} sparsec_rt;

/* What a kernel works with for a piece of rows: its thread's memory, and the buffers that hold only
 * these rows. */
typedef struct {
    char *scratch;
    char *local;
    int64_t first, blocks; /* the rows, in blocks of 16 */
} sparsec_tile;

SPARSEC_INLINE void sparsec_for(const sparsec_rt *rt, sparsec_task task, void *arg, int32_t count)
{
    if (rt->parallel && count > 1) {
        rt->parallel->run(rt->parallel, task, arg, count);
        return;
    }
    for (int32_t i = 0; i < count; i++)
        task(arg, i, 0);
}

#endif
