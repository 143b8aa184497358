/* What the lane kernels share: addressing in blocks of 16 rows.
 *
 *   float / int32 lanes   [block][channel][16]        4 bytes each
 *   byte lanes            [block][channel][16]        1 byte each
 *   panel                 [block][channel/4][16][4]   bytes, one VPDPBUSD operand per 64 bytes
 *
 * Channel counts are rounded up to a multiple of 4 (CP in the kernels).
 */

/* Buffers and constants of one kernel call: inputs, outputs, constant vectors, constant scalars. */
typedef struct {
    const void *in[24];
    void *out[20];
    const void *cv[40];
    float cs[64];
} lane_args;

/* A copy on the stack that no store of the kernel can alias, so that the compiler may keep what it
 * reads from it in registers. */
#define LANE_ARGS(name, from)             \
    const lane_args name##_copy = *(from); \
    const lane_args *const name = &name##_copy

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

/* An index into a table of n rows: negative ones count from the end; out of range is clamped, so
 * that no input can make the kernel read outside the table. */
SPARSEC_INLINE int64_t lane_index(int64_t i, int64_t n)
{
    if (i < 0)
        i += n;
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}
