/* tiles.h: eight registers of up to 16 rows x 64 bytes, and products of two of them added to a third.
 *
 * Intel's name of the unit is AMX.  tiles_amx.h has the instructions, tiles_emulated.h the same in portable
 * C, for any machine and for sanitizers; the target says which of them is tiles_isa.h.  A tile's number is
 * written out, since it is part of the instruction:
 *
 *   TILE_ZERO(t)             all its elements 0
 *   TILE_LOAD(t, p, stride)  its rows from memory, `stride` bytes apart; rows are contiguous
 *   TILE_STORE(t, p, stride) its rows to memory
 *   TILE_DOT(c, w, x)        c[m][n] += sum_k dot(w[m][k], x[k][n]): 4 signed bytes of w, 4 unsigned ones of x
 *   TILE_DOT_BF16(c, w, x)   the same for pairs of bfloat16, with float sums
 *
 * With 16 packs of a panel as x (they lie as a tile does) and 16 channels of weights as w, c is a vector of
 * 16 rows for each channel.
 *
 * A thread gives its tiles a shape before it uses them, and releases them when it is done: the system then
 * need not save them.  Shapes and contents are the thread's own and are lost by releasing, as by any other
 * code of the thread that configures tiles: do not count on them across calls.
 */

/* What a thread loads to configure its tiles, as the instruction wants it. */
typedef struct {
    uint8_t palette; /* 1; 0 releases */
    uint8_t start_row, reserved[14];
    uint16_t bytes[16]; /* of a row, by tile */
    uint8_t rows[16];
} tile_config;

_Static_assert(sizeof(tile_config) == 64, "the instruction reads 64 bytes");

#ifdef __AVX512VBMI2__
#include <immintrin.h>
#endif
#include <string.h>

#include "tiles_isa.h"

/* Whether the system saves tiles for this process; it is asked until it does. */
static inline int tiles_permitted(void)
{
    static int32_t given;
    if (!__atomic_load_n(&given, __ATOMIC_RELAXED) && tiles_request() == 0)
        __atomic_store_n(&given, 1, __ATOMIC_RELAXED);
    return __atomic_load_n(&given, __ATOMIC_RELAXED);
}

/* Eight whole tiles. */
SPARSEC_INLINE void tiles_configure_whole(void)
{
    static const tile_config whole = {
        .palette = 1,
        .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, 16, 16},
    };
    tiles_configure(&whole);
}

/* Sums of two tiles of channels x two blocks of rows that wait, [2 blocks][32 channels][16 rows], and what of
 * them has been taken: 4 channels of a block at a time. */
typedef struct {
    int64_t blk;       /* the first block */
    int32_t q, quads;  /* groups of 4 channels */
    int32_t count;     /* all pieces: blocks * quads; 0: nothing waits */
    int32_t at, block; /* the next one: quad and block */
} tile_sums;

SPARSEC_INLINE tile_sums tile_sums_of(int64_t blk, int32_t blocks, int32_t q, int32_t q1)
{
    const int32_t quads = q1 - q < 8 ? q1 - q : 8;
    return (tile_sums){blk, q, quads, quads * blocks, 0, 0};
}

SPARSEC_INLINE void tile_sums_next(tile_sums *s)
{
    if (++s->at == s->quads)
        s->at = 0, s->block++;
}

/* How sums begin: as they are in their tiles, from zero, or with those of other inputs, in memory. */
enum { TILE_KEPT, TILE_NEW, TILE_MORE };

/* What tile t has summed goes where it belongs, if it waits, and the tile begins its next sums, if it has any.  One
 * tile after the other, between the first products of what comes next: four stores at once hold the unit up. */
#define TILE_TURN(t, waits, to, used, begin, from) \
    do {                                           \
        if (waits)                                 \
            TILE_STORE(t, to, 64);                 \
        if ((used) && (begin) == TILE_MORE)        \
            TILE_LOAD(t, from, 64);                \
        else if ((begin) == TILE_NEW)              \
            TILE_ZERO(t);                          \
    } while (0)

/* Tiles of weights that are stored as masks and what these stand for, and where they go. */
typedef struct {
    const int8_t *from;
    int8_t *to;
} tile_stream;

/* 64 bytes: where a bit of the mask is set the next 1 (or 4) of those that follow, else 0.  Returns what
 * follows those.  May read 64 bytes whatever the mask is. */
SPARSEC_INLINE const int8_t *tile_expand_row(int8_t *to, uint64_t mask, const int8_t *from, int granule)
{
#ifdef __AVX512VBMI2__
    const __m512i next = _mm512_loadu_si512(from);
    _mm512_store_si512(to, granule == 4 ? _mm512_maskz_expand_epi32((__mmask16)mask, next)
                                        : _mm512_maskz_expand_epi8(mask, next));
    return from + __builtin_popcountll(mask) * granule;
#else
    for (int i = 0; i < 64; i++)
        to[i] = mask >> i / granule & 1 ? *from++ : 0;
    return from;
#endif
}

/* Makes whole tiles until there are so many.  Before each are the masks of its 16 rows, of 2 bytes where a bit
 * stands for 4 weights, of 8 where it stands for one. */
SPARSEC_INLINE void tile_expand(tile_stream *s, int granule, const int8_t *until)
{
    while (s->to < until) {
        const int8_t *const masks = s->from;
        const int size = 8 / granule;
        s->from += 16 * size;
        for (int m = 0; m < 16; m++, s->to += 64) {
            uint64_t mask = 0;
            memcpy(&mask, masks + m * size, (size_t)size);
            s->from = tile_expand_row(s->to, mask, s->from, granule);
        }
    }
}
