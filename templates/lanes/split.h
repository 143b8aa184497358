/* split.h: floats as sums of three bfloat16, for products of floats by units that multiply those.
 *
 *   x = x1 + x2 + x3       the first 8 bits of its significand, the first 8 of what is left, the rest: exact
 *   x w = x1 w1 + (x1 w2 + x2 w1) + (x1 w3 + x2 w2 + x3 w1), but for less than 2^-21 of it, 2^-23 on average
 *
 * Parts below 2^-126 count as zero, as operands of such units do.
 */

/* Two floats of each lane as pairs of parts, `even` in the lower halves; the parts lie `apart` bytes apart. */
SPARSEC_INLINE void v_split(char *to, int64_t apart, vf even, vf odd)
{
    const int32_t upper = (int32_t)0xffff0000;
    for (int part = 0; part < 3; part++) {
        vi_store(to + part * apart, ((vi)even >> 16 & 0xffff) | ((vi)odd & upper));
        even -= (vf)((vi)even & upper);
        odd -= (vf)((vi)odd & upper);
    }
}

/* Whether the lanes lo <= lane < hi of sizes (the bits of floats without their signs) are less than a limit (the bits
 * of it). */
SPARSEC_INLINE int split_lanes(vi sizes, int32_t limit, int32_t lo, int32_t hi)
{
    int can = 1;
    for (int i = lo; i < hi; i++)
        can &= sizes[i] < limit;
    return can;
}

/* Whether the channels of a block of 16 rows, float lanes, are less than a limit (the bits of it) in its rows (`flat`:
 * of each its number, -1 for padding): if they are finite they have parts. */
SPARSEC_INLINE int split_can(const float *from, int32_t channels, const int32_t *flat, int32_t limit)
{
    int can = 1;
    for (int s = 0; s < SUB; s++) {
        vi most = vi_set1(0);
        for (int32_t c = 0; c < channels; c++)
            most = vi_max(most, vi_load(from + c * 16 + s * VL) & 0x7fffffff);
        for (int i = 0; i < VL; i++)
            can &= most[i] < limit || flat[s * VL + i] < 0;
    }
    return can;
}

/* Channels of a block of 16 rows, float lanes, as tiles of parts, [steps][3][16 pairs][16 rows][2], filled up with
 * zeros. */
SPARSEC_INLINE void split_panel(char *to, const float *from, int32_t channels, int32_t steps)
{
    for (int32_t pair = 0; pair < steps * 16; pair++)
        for (int s = 0; s < SUB; s++) {
            vf x[2];
            for (int i = 0; i < 2; i++)
                x[i] = 2 * pair + i < channels ? vf_load(from + (2 * pair + i) * 16 + s * VL) : vf_set1(0.0f);
            v_split(to + (pair / 16 * 48 + pair % 16) * 64 + s * VL * 4, 1024, x[0], x[1]);
        }
}

/* Rows lo <= row < hi of tiles of weights, [2][16] floats each, as rows of tiles of parts: [step][2][3][16][64]. */
SPARSEC_INLINE void split_tiles(char *to, const float *from, int32_t lo, int32_t hi)
{
    for (int32_t row = lo; row < hi; row++)
        for (int s = 0; s < SUB; s++) {
            const float *const w = from + row * 32LL + s * VL;
            v_split(to + (row / 16 * 48 + row % 16) * 64 + s * VL * 4, 1024, vf_load(w), vf_load(w + 16));
        }
}
