/* Runs a bucket in every way that a caller may, under sanitizers:  driver weights.bin
 *
 * Inputs, outputs and workspace are heap blocks of their exact sizes.  Prints "ok, N runs" and
 * returns 0, or says what is wrong and returns 1. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sparsec.h"

const unsigned char *driver_weights;

static int failed, runs;
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf(__VA_ARGS__);                                                                   \
            putchar('\n');                                                                         \
            failed = 1;                                                                            \
        }                                                                                          \
    } while (0)

static int64_t count(const sparsec_tensor *t, int64_t batch)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->dims[i] == SPARSEC_DIM_BATCH      ? batch
             : t->dims[i] == SPARSEC_DIM_SEQUENCE ? (int64_t)sparsec_model_info()->length
                                                  : t->dims[i];
    return n;
}

/* Pieces in reverse order, on threads that take turns. */
static void backwards(const sparsec_parallel *self, sparsec_task task, void *arg, int32_t n)
{
    for (int32_t i = n - 1; i >= 0; i--)
        task(arg, i, i % self->threads);
}

enum { VALID, NEGATIVE, HUGE_IDS, EXTREME, MIXED, BAD_MASK, KINDS };

static int64_t element(int kind, int is_mask, int64_t i, uint64_t *seed)
{
    static const int64_t odd[] = {INT64_MIN, INT64_MAX, -1, 1LL << 32, -(1LL << 32), 50, -51, INT32_MIN};
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    const int64_t random = (int64_t)(*seed >> 33);
    if (is_mask)
        return kind == BAD_MASK ? odd[random % 8] : i % 5 != 4;
    switch (kind) {
    case NEGATIVE:
        return -1 - random;
    case HUGE_IDS:
        return 1000000000000 + random;
    case EXTREME:
        return i % 2 ? INT64_MIN : INT64_MAX;
    case MIXED:
        return odd[random % 8];
    default:
        return random % 2; /* below the rows of every table */
    }
}

/* An index outside its table is an error that says so; padding's own are not. */
static void refused_index(const void *workspace, void **inputs, int64_t batch, const int32_t *lengths)
{
    const sparsec_info *info = sparsec_model_info();
    sparsec_index_error e;
    if (sparsec_bad_index(workspace, &e) != SPARSEC_OK || !e.table[0] || !e.node[0]) {
        CHECK(0, "no description");
        return;
    }
    CHECK(e.index < -e.extent || e.index >= e.extent, "%ld is inside %ld", (long)e.index, (long)e.extent);
    CHECK(e.input >= 0 && e.input < info->n_inputs && e.input != info->mask_input, "input %d", e.input);
    CHECK(e.position >= 0 && e.position < count(&info->inputs[e.input], batch), "at %ld", (long)e.position);
    CHECK(((const int64_t *)inputs[e.input])[e.position] == e.index, "another index at %ld", (long)e.position);
    CHECK(!lengths || e.position % info->length < lengths[e.position / info->length], "that is padding");
}

/* One call; outputs start as garbage.  Fills `result` with the first output if it is given. */
static void run(int64_t batch, int kind, const int32_t *lengths, int threads, float *result)
{
    const sparsec_info *info = sparsec_model_info();
    const sparsec_parallel parallel = {threads, backwards};
    void *inputs[8], *outputs[8];
    uint64_t seed = 7;
    for (int i = 0; i < info->n_inputs; i++) {
        const int64_t n = count(&info->inputs[i], batch);
        int64_t *ids = malloc(n * sizeof *ids);
        for (int64_t j = 0; j < n; j++)
            ids[j] = element(kind, i == info->mask_input, j, &seed);
        inputs[i] = ids;
    }
    for (int i = 0; i < info->n_outputs; i++) {
        const size_t size = (size_t)count(&info->outputs[i], batch) * sizeof(float);
        memset(outputs[i] = malloc(size), 0xA5, size);
    }
    const size_t size = sparsec_workspace_size(batch, threads);
    void *workspace = NULL;
    if (posix_memalign(&workspace, 64, size))
        abort();
    memset(workspace, 0xA5, size);
    const int status = sparsec_run((const void *const *)inputs, outputs, batch, lengths, workspace,
                                   threads > 1 ? &parallel : NULL);
    int64_t real = lengths ? 0 : 1;
    for (int64_t b = 0; lengths && b < batch; b++)
        real += lengths[b];
    /* MIXED has indices that are right. */
    const int wrong = kind == NEGATIVE || kind == HUGE_IDS || kind == EXTREME;
    if (wrong ? real > 0 : status == SPARSEC_BAD_INDEX && kind == MIXED) {
        CHECK(status == SPARSEC_BAD_INDEX, "status %d for ids of kind %d", status, kind);
        refused_index(workspace, inputs, batch, lengths);
    } else {
        sparsec_index_error none;
        CHECK(status == SPARSEC_OK, "status %d", status);
        CHECK(sparsec_bad_index(workspace, &none) == SPARSEC_BAD_ARGUMENT, "an error where there is none");
    }
    const float *hidden = outputs[0];
    const int64_t row = count(&info->outputs[0], 1) / info->length;
    for (int64_t b = 0; b < batch; b++)
        for (int64_t i = 0; i < info->length; i++)
            for (int64_t c = 0; c < row; c++) {
                const float y = hidden[(b * info->length + i) * row + c];
                if (lengths && i >= lengths[b])
                    CHECK(y == 0 || status, "padding: %g at %ld, %ld", y, (long)b, (long)i);
                else
                    CHECK(kind == BAD_MASK || isfinite(y), "%g at %ld, %ld", y, (long)b, (long)i);
            }
    if (result)
        memcpy(result, hidden, (size_t)count(&info->outputs[0], batch) * sizeof(float));
    for (int i = 0; i < info->n_inputs; i++)
        free(inputs[i]);
    for (int i = 0; i < info->n_outputs; i++)
        free(outputs[i]);
    free(workspace);
    runs++;
}

/* Wrong arguments are refused, and nothing is written. */
static void refuse(void)
{
    const int32_t length = (int32_t)sparsec_model_info()->length;
    int64_t *ids = calloc((size_t)length, sizeof *ids);
    void *in[8], *out[8], *none[8] = {0}, *workspace = NULL;
    for (int i = 0; i < 8; i++)
        in[i] = ids, out[i] = ids; /* must not be written: 8 bytes a token are too few */
    if (posix_memalign(&workspace, 64, sparsec_workspace_size(1, 1)))
        abort();
    const int32_t wrong[] = {-1, length + 1, INT32_MIN, INT32_MAX};
#define REFUSED(...)                                                                               \
    CHECK(sparsec_run(__VA_ARGS__, workspace, NULL) == SPARSEC_BAD_ARGUMENT, "accepted " #__VA_ARGS__)
    for (int i = 0; i < 4; i++)
        REFUSED((const void *const *)in, out, 1, &wrong[i]);
    REFUSED((const void *const *)in, out, 0, NULL);
    REFUSED((const void *const *)in, out, INT64_MIN, NULL);
    REFUSED((const void *const *)none, out, 1, NULL);
    REFUSED((const void *const *)in, none, 1, NULL);
    REFUSED(NULL, out, 1, NULL);
    REFUSED((const void *const *)in, NULL, 1, NULL);
    CHECK(sparsec_run((const void *const *)in, out, 1, NULL, NULL, NULL) == SPARSEC_BAD_ARGUMENT,
          "accepted no workspace");
    free(workspace);
    free(ids);
}

int main(int argc, char **argv)
{
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!file || fseek(file, 0, SEEK_END))
        return 1;
    const long size = ftell(file);
    void *weights = NULL;
    rewind(file);
    if (posix_memalign(&weights, 64, (size_t)size) || fread(weights, 1, (size_t)size, file) != (size_t)size)
        return 1;
    fclose(file);
    driver_weights = weights;

    const sparsec_info *info = sparsec_model_info();
    const int32_t length = (int32_t)info->length;
    CHECK(info->abi_version == SPARSEC_ABI_VERSION && info->supports_lengths, "info");
    static const int64_t batches[] = {1, 3, 17};
    for (int i = 0; i < 3; i++) {
        const int64_t batch = batches[i];
        int32_t *lengths = malloc(batch * sizeof *lengths);
        for (int kind = 0; kind < KINDS; kind++) {
            run(batch, kind, NULL, 1, NULL);
            for (int64_t b = 0; b < batch; b++)
                lengths[b] = (int32_t)((b * 13 + kind * 5) % (length + 1));
            lengths[batch / 2] = 0;
            run(batch, kind, lengths, 1, NULL);
            run(batch, kind, lengths, 3, NULL);
        }
        for (int32_t n = 0; n <= length && batch <= 3; n++) {
            for (int64_t b = 0; b < batch; b++)
                lengths[b] = n;
            run(batch, VALID, lengths, 1 + n % 3, NULL);
        }
        free(lengths);
        const size_t bytes = (size_t)count(&info->outputs[0], batch) * sizeof(float);
        float *serial = malloc(bytes), *parallel = malloc(bytes);
        run(batch, VALID, NULL, 1, serial);
        for (int threads = 2; threads <= 5; threads++) {
            run(batch, VALID, NULL, threads, parallel);
            CHECK(!memcmp(serial, parallel, bytes), "%d threads, batch %d", threads, (int)batch);
        }
        free(serial);
        free(parallel);
    }
    refuse();
    free(weights);
    printf("%s, %d runs\n", failed ? "failed" : "ok", runs);
    return failed;
}
