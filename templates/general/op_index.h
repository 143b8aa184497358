/* op_index.h: indices that are data. */
#ifndef SPARSEC_OP_INDEX_H
#define SPARSEC_OP_INDEX_H

/* For loops over many indices -n <= i < n, without a branch: the index counted from the start, moved to
 * the nearest element where it is outside.  Then the highest bit of *outside is set. */
static inline int64_t op_index(int64_t i, int64_t n, uint64_t *outside)
{
    i = i < 0 ? i + n : i;
    *outside |= (uint64_t)i | ((uint64_t)n - 1 - (uint64_t)i);
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

#endif
