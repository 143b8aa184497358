/* One product of tiles of any shape, on cases from the input until that ends; or, with an argument, a misuse. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rt.h"
#include "tiles.h"

/* The places of the fields, by Intel's manual. */
_Static_assert(offsetof(tile_config, palette) == 0 && offsetof(tile_config, start_row) == 1, "");
_Static_assert(offsetof(tile_config, bytes) == 16 && offsetof(tile_config, rows) == 48, "");

static tile_config shapes(int rows, int packs, int columns)
{
    tile_config config = {.palette = 1};
    config.rows[1] = (uint8_t)rows, config.bytes[1] = (uint16_t)(4 * columns);
    config.rows[2] = (uint8_t)rows, config.bytes[2] = (uint16_t)(4 * packs);
    config.rows[3] = (uint8_t)packs, config.bytes[3] = (uint16_t)(4 * columns);
    return config;
}

static void misuse(int number)
{
    char memory[1024] = {0};
    tile_config config = shapes(16, 16, 16);
    if (number != 0)
        tiles_configure(&config);
    switch (number) {
    case 0: /* a tile before it has a shape */
    case 1: TILE_ZERO(4); break;
    case 2: tiles_release(); TILE_STORE(1, memory, 64); break;
#ifdef EMULATED /* the assembler refuses it */
    case 3: TILE_DOT(1, 2, 2); break;
#endif
    case 4: config.bytes[2] = 60; tiles_configure(&config); TILE_DOT(1, 2, 3); break;
    case 5: config.rows[1] = 15; tiles_configure(&config); TILE_DOT(1, 2, 3); break;
    case 6: config.palette = 2; tiles_configure(&config); break;
    case 7: config.rows[1] = 17; tiles_configure(&config); break;
    case 8: config.rows[1] = 0; tiles_configure(&config); break;
    case 9: config.reserved[3] = 1; tiles_configure(&config); break;
    case 10: config.rows[8] = config.bytes[8] = 4; tiles_configure(&config); break;
    }
}

int main(int argc, char **argv)
{
    int32_t head[6]; /* rows, packs, columns, stride, whether of bfloat16, unused */
    if (argc > 1) {
        misuse(atoi(argv[1]));
        return 0;
    }
    if (tiles_request())
        return 1;
    while (fread(head, sizeof head, 1, stdin) == 1) {
        const int32_t rows = head[0], packs = head[1], columns = head[2], stride = head[3];
        uint8_t *const w = malloc((size_t)rows * stride), *const x = malloc((size_t)packs * stride);
        uint8_t *const sums = malloc((size_t)rows * stride);
        if (!w || !x || !sums || fread(w, stride, rows, stdin) != (size_t)rows
            || fread(x, stride, packs, stdin) != (size_t)packs || fread(sums, stride, rows, stdin) != (size_t)rows)
            abort();
        const tile_config config = shapes(rows, packs, columns);
        tiles_configure(&config);
        TILE_LOAD(1, sums, stride);
        TILE_LOAD(2, w, stride);
        TILE_LOAD(3, x, stride);
        if (head[4])
            TILE_DOT_BF16(1, 2, 3);
        else
            TILE_DOT(1, 2, 3);
        TILE_STORE(1, sums, stride);
        TILE_ZERO(1);
        TILE_STORE(1, w, stride);
        tiles_release();
        for (int32_t m = 0; m < rows; m++)
            for (int32_t i = 0; i < 4 * columns; i++)
                if (w[m * stride + i])
                    return 1;
        fwrite(sums, stride, rows, stdout);
        fflush(stdout);
        free(w), free(x), free(sums);
    }
    return 0;
}
