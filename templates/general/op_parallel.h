/* op_parallel.h: loops of independent rows, split over the threads. */
#ifndef SPARSEC_OP_PARALLEL_H
#define SPARSEC_OP_PARALLEL_H

/* A loop of fewer element steps is not worth waking another thread for. */
#ifndef OP_PARALLEL_STEPS
#define OP_PARALLEL_STEPS 32768
#endif

/* Into how many pieces to split a loop of `rows` independent rows and `work` element steps: enough to
 * balance the threads, none smaller than what waking a thread costs. */
static inline int32_t op_pieces(const sparsec_rt *rt, int64_t rows, int64_t work)
{
    if (rt->parallel == NULL || rt->parallel->threads < 2 || work < OP_PARALLEL_STEPS)
        return 1;
    int64_t pieces = 4 * (int64_t)rt->parallel->threads;
    if (pieces > 2 * work / OP_PARALLEL_STEPS)
        pieces = 2 * work / OP_PARALLEL_STEPS;
    if (pieces > rows)
        pieces = rows;
    return pieces < 1 ? 1 : (int32_t)pieces;
}

/* First row of piece `index` of `pieces`. */
static inline int64_t op_piece_begin(int64_t rows, int32_t index, int32_t pieces)
{
    return rows / pieces * index + rows % pieces * index / pieces;
}

#endif
