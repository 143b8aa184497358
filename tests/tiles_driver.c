/* Runs kernels of linear layers on tiles that test_tiles.py has rendered, on cases from its input, until
 * that ends.  Buffers have exactly the size they should have, for AddressSanitizer. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rt.h"
#include "vec_isa.h"
#include "vec.h"
#include "lanes.h"
#include "split.h"
#include "tiles.h"

#include "kernels.h"

enum { KERNELS = sizeof kernels / sizeof *kernels };

static void *buffer(size_t size, int fill)
{
    void *const p = aligned_alloc(64, (size + 63) / 64 * 64);
    if (!p)
        abort();
    memset(p, fill, size);
    return p;
}

static void *read_buffer(size_t size)
{
    void *const p = buffer(size, 0);
    if (fread(p, 1, size, stdin) != size)
        abort();
    return p;
}

int main(void)
{
    /* Kernel, first block, last, first quad, last; bytes of weights, offsets, and starts. */
    int32_t head[8];
    if (tiles_request())
        return 1;
    while (fread(head, sizeof head, 1, stdin) == 1) {
        if (head[0] < 0 || head[0] >= KERNELS)
            abort();
        const kernel *const k = &kernels[head[0]];
        const size_t blocks = (size_t)head[2], out_size = blocks * k->quads * 64;
        void *const x = read_buffer(blocks * k->stride);
        void *const w = read_buffer((size_t)head[5]);
        void *const offsets = read_buffer((size_t)head[6]);
        void *const start = read_buffer((size_t)head[7]);
        void *const bias = read_buffer(16 * (size_t)k->quads);
        int32_t *const flat = read_buffer(64 * blocks);
        int32_t *const lanes = buffer(4 * out_size, 0xa5);
        uint8_t *const panel = buffer(out_size, 0xa5);
        char *const scratch = buffer(k->scratch, 0xa5);
        const linear_args args = {.x = x,
                                  .weights = w,
                                  .offsets = offsets,
                                  .start = start,
                                  .bias = bias,
                                  .sums = lanes,
                                  .y = (char *)panel};
        const sparsec_rows rows = {.rows = 16 * (int64_t)blocks, .blocks = (int64_t)blocks, .flat = flat};
        tiles_configure_whole();
        k->run(&args, &rows, head[1], head[2], head[3], head[4], scratch);
        tiles_release();
        if (fwrite(lanes, 4, out_size, stdout) != out_size || fwrite(panel, 1, out_size, stdout) != out_size)
            abort();
        fflush(stdout);
        free(x), free(w), free(offsets), free(start), free(bias), free(flat), free(lanes), free(panel), free(scratch);
    }
    return 0;
}
