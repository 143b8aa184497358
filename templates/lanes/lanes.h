/* What the lane kernels share: addressing in blocks of 16 rows.
 *
 *   float / int32 lanes   [block][channel][16]        4 bytes each
 *   byte lanes            [block][channel][16]        1 byte each
 *   panel                 [block][channel/4][16][4]   bytes, one VPDPBUSD operand per 64 bytes
 *
 * Channel counts are rounded up to a multiple of 4 (CP in the kernels).
 */

/* A copy of a call's arguments on the stack, that no store of the kernel can alias, so that the compiler may
 * keep what it reads from it in registers. */
#define OWN_ARGS(type, name, from) \
    const type name##_copy = *(from); \
    const type *const name = &name##_copy

/* A row of a row-major tensor for each lane: gathered element by element. */
#define LANE_ROWS(T, LOAD)                                                                        \
    SPARSEC_INLINE vf vf_gather_##T(const T *const *rows, int64_t c)                              \
    {                                                                                             \
        float x[VL] __attribute__((aligned(64)));                                                 \
        for (int i = 0; i < VL; i++)                                                              \
            x[i] = (float)rows[i][c];                                                             \
        return vf_load(x);                                                                        \
    }                                                                                             \
    SPARSEC_INLINE vi vi_gather_##T(const T *const *rows, int64_t c)                              \
    {                                                                                             \
        int32_t x[VL] __attribute__((aligned(64)));                                               \
        for (int i = 0; i < VL; i++)                                                              \
            x[i] = (int32_t)rows[i][c];                                                           \
        return vi_load(x);                                                                        \
    }
LANE_ROWS(float, )
LANE_ROWS(uint8_t, )
LANE_ROWS(int8_t, )
LANE_ROWS(int32_t, )
