/* Runs a bucket once under sanitizers:  driver weights.bin inputs outputs batch
 *
 * `inputs` holds every input behind its size in bytes (int64).  Tensors, workspace and weights are heap
 * blocks of their exact sizes.  Writes the outputs one after another. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sparsec.h"

const unsigned char *driver_weights;
static int64_t batch;

static void *block(size_t size)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, size ? size : 1))
        abort();
    return p;
}

static size_t bytes(const sparsec_tensor *t)
{
    static const size_t sizes[] = {[SPARSEC_FLOAT32] = 4, [SPARSEC_UINT8] = 1,  [SPARSEC_INT8] = 1,
                                   [SPARSEC_UINT16] = 2,  [SPARSEC_INT16] = 2,  [SPARSEC_INT32] = 4,
                                   [SPARSEC_INT64] = 8,   [SPARSEC_BOOL] = 1,   [SPARSEC_FLOAT64] = 8,
                                   [SPARSEC_UINT32] = 4,  [SPARSEC_UINT64] = 8};
    size_t n = sizes[t->dtype];
    for (int i = 0; i < t->rank; i++)
        n *= t->dims[i] == SPARSEC_DIM_BATCH      ? (size_t)batch
             : t->dims[i] == SPARSEC_DIM_SEQUENCE ? (size_t)sparsec_model_info()->length
                                                  : (size_t)t->dims[i];
    return n;
}

/* Pieces in reverse order, on threads that take turns. */
static void backwards(const sparsec_parallel *self, sparsec_task task, void *arg, int32_t n)
{
    for (int32_t i = n - 1; i >= 0; i--)
        task(arg, i, i % self->threads);
}

int main(int argc, char **argv)
{
    FILE *file = argc == 5 ? fopen(argv[1], "rb") : NULL;
    if (!file || fseek(file, 0, SEEK_END))
        return 2;
    batch = strtoll(argv[4], NULL, 10);
    const size_t size = (size_t)ftell(file);
    unsigned char *weights = block(size);
    rewind(file);
    if (fread(weights, 1, size, file) != size)
        return 3;
    fclose(file);
    driver_weights = weights;
    const sparsec_info *info = sparsec_model_info();
    void **inputs = calloc((size_t)info->n_inputs + 1, sizeof *inputs);
    void **outputs = calloc((size_t)info->n_outputs + 1, sizeof *outputs);
    file = fopen(argv[2], "rb");
    for (int i = 0; i < info->n_inputs; i++) {
        int64_t n = 0;
        if (!file || fread(&n, sizeof n, 1, file) != 1 || (size_t)n != bytes(&info->inputs[i]))
            return 4;
        inputs[i] = block((size_t)n);
        if (n && fread(inputs[i], 1, (size_t)n, file) != (size_t)n)
            return 5;
    }
    fclose(file);
    for (int i = 0; i < info->n_outputs; i++)
        memset(outputs[i] = block(bytes(&info->outputs[i])), 0xA5, bytes(&info->outputs[i]));
    for (int32_t threads = 1; threads <= 3; threads += 2) {
        const sparsec_parallel parallel = {threads, backwards};
        const size_t need = sparsec_workspace_size(batch, threads);
        void *workspace = block(need);
        memset(workspace, 0xA5, need);
        if (sparsec_run((const void *const *)inputs, outputs, batch, NULL, workspace,
                        threads > 1 ? &parallel : NULL) != SPARSEC_OK)
            return 6;
        free(workspace);
    }
    file = fopen(argv[3], "wb");
    for (int i = 0; i < info->n_outputs; i++)
        if (!file || fwrite(outputs[i], 1, bytes(&info->outputs[i]), file) != bytes(&info->outputs[i]))
            return 7;
    return fclose(file) ? 8 : 0;
}
