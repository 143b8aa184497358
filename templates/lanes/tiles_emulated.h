/* tiles_emulated.h: tiles.h in portable C.
 *
 * Where the unit would fault (a tile used that is not configured, operands whose shapes do not fit), the
 * program ends with a message. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TILES = 8 };

static _Thread_local struct {
    tile_config config; /* palette 0: none */
    uint8_t data[TILES][16][64];
} tiles;

#define TILE_CHECK(condition)                                         \
    do {                                                              \
        if (!(condition)) {                                           \
            fprintf(stderr, "tiles: %s does not hold\n", #condition); \
            abort();                                                  \
        }                                                             \
    } while (0)

/* Nobody needs to be asked. */
static inline int tiles_request(void) { return 0; }

static inline void tiles_configure(const tile_config *config)
{
    static const uint8_t none[14];
    TILE_CHECK(config->palette == 1);
    TILE_CHECK(config->start_row == 0 && memcmp(config->reserved, none, sizeof none) == 0);
    for (int t = 0; t < 16; t++) {
        TILE_CHECK(config->rows[t] <= 16 && config->bytes[t] <= 64);
        TILE_CHECK(!config->rows[t] == !config->bytes[t]);
        TILE_CHECK(t < TILES || !config->rows[t]);
    }
    tiles.config = *config;
    memset(tiles.data, 0, sizeof tiles.data);
}

static inline void tiles_release(void) { memset(&tiles, 0, sizeof tiles); }

static inline void tile_check(int t)
{
    TILE_CHECK(t >= 0 && t < TILES && tiles.config.palette == 1 && tiles.config.rows[t]);
}

static inline void tile_zero(int t)
{
    tile_check(t);
    memset(tiles.data[t], 0, sizeof tiles.data[t]);
}

static inline void tile_load(int t, const void *p, int64_t stride)
{
    tile_zero(t);
    for (int m = 0; m < tiles.config.rows[t]; m++)
        memcpy(tiles.data[t][m], (const char *)p + m * stride, tiles.config.bytes[t]);
}

static inline void tile_store(int t, void *p, int64_t stride)
{
    tile_check(t);
    for (int m = 0; m < tiles.config.rows[t]; m++)
        memcpy((char *)p + m * stride, tiles.data[t][m], tiles.config.bytes[t]);
}

/* That a product of these shapes exists. */
static inline void tile_check_product(int c, int w, int x)
{
    tile_check(c), tile_check(w), tile_check(x);
    TILE_CHECK(c != w && c != x && w != x);
    TILE_CHECK(tiles.config.rows[c] == tiles.config.rows[w]);
    TILE_CHECK(tiles.config.bytes[c] == tiles.config.bytes[x] && tiles.config.bytes[c] % 4 == 0);
    TILE_CHECK(tiles.config.bytes[w] == 4 * tiles.config.rows[x]);
}

static inline void tile_dot(int c, int w, int x)
{
    tile_check_product(c, w, x);
    for (int m = 0; m < tiles.config.rows[c]; m++) {
        uint32_t sums[16]; /* modulo 2^32, as the unit's */
        memcpy(sums, tiles.data[c][m], 64);
        for (int k = 0; k < tiles.config.rows[x]; k++) {
            int8_t by[4];
            memcpy(by, &tiles.data[w][m][4 * k], 4);
            for (int n = 0; n < tiles.config.bytes[c] / 4; n++)
                for (int i = 0; i < 4; i++)
                    sums[n] += (uint32_t)(by[i] * tiles.data[x][k][4 * n + i]);
        }
        memcpy(tiles.data[c][m], sums, tiles.config.bytes[c]);
    }
}

/* A float whose bits are these; below 2^-126 it is zero, as for the unit. */
static inline float tile_float(uint32_t bits)
{
    float number;
    if (!(bits & 0x7f800000))
        bits &= 0x80000000;
    memcpy(&number, &bits, 4);
    return number;
}

static inline float tile_flush(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, 4);
    return tile_float(bits);
}

/* The bfloat16 that begins there. */
static inline float tile_bf16(const uint8_t *p) { return tile_float((uint32_t)p[1] << 24 | (uint32_t)p[0] << 16); }

static inline void tile_dot_bf16(int c, int w, int x)
{
    tile_check_product(c, w, x);
    for (int m = 0; m < tiles.config.rows[c]; m++)
        for (int n = 0; n < tiles.config.bytes[c] / 4; n++) {
            float pair[2] = {0, 0}, sum;
            for (int k = 0; k < tiles.config.rows[x]; k++)
                for (int i = 0; i < 2; i++)
                    pair[i] = tile_flush(pair[i] + tile_flush(tile_bf16(&tiles.data[w][m][4 * k + 2 * i])
                                                             * tile_bf16(&tiles.data[x][k][4 * n + 2 * i])));
            memcpy(&sum, &tiles.data[c][m][4 * n], 4);
            sum = tile_flush(tile_flush(sum) + tile_flush(pair[0] + pair[1]));
            memcpy(&tiles.data[c][m][4 * n], &sum, 4);
        }
}

#define TILE_ZERO(t) tile_zero(t)
#define TILE_LOAD(t, p, stride) tile_load(t, p, stride)
#define TILE_STORE(t, p, stride) tile_store(t, p, stride)
#define TILE_DOT(c, w, x) tile_dot(c, w, x)
#define TILE_DOT_BF16(c, w, x) tile_dot_bf16(c, w, x)
