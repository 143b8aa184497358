/* runtime_model.c: a hand-written bucket library for the tests of the runtime.
 *
 * Compiled with -DLENGTH=16 -DABI=1 -DMASK_INPUT=1 -DSUPPORTS_LENGTHS=1; LENGTH 0 makes a model
 * without a sequence axis.  What it computes is in runtime_fake.py.  It fills its whole workspace
 * before it reads the inputs and checks it at the end, so whatever overlaps is noticed.  Ids from a
 * million on are outside a table, if they are real.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sparsec.h"

#if LENGTH
#define TOKENS LENGTH
#define ROW {SPARSEC_DIM_BATCH, SPARSEC_DIM_SEQUENCE}
#else
#define TOKENS 4
#define ROW {SPARSEC_DIM_BATCH, 4}
#endif

static const sparsec_tensor inputs[] = {
    {"ids", SPARSEC_INT64, 2, ROW},
    {"mask", SPARSEC_INT64, 2, ROW},
    {"bias", SPARSEC_FLOAT32, 1, {3}},
};

static const sparsec_tensor outputs[] = {
#if LENGTH
    {"hidden", SPARSEC_FLOAT32, 3, {SPARSEC_DIM_BATCH, SPARSEC_DIM_SEQUENCE, 3}},
    {"pairs", SPARSEC_INT64, 3, {SPARSEC_DIM_BATCH, SPARSEC_DIM_SEQUENCE, SPARSEC_DIM_SEQUENCE}},
    {"turned", SPARSEC_INT32, 2, {SPARSEC_DIM_SEQUENCE, SPARSEC_DIM_BATCH}},
#else
    {"hidden", SPARSEC_FLOAT32, 3, {SPARSEC_DIM_BATCH, 4, 3}},
    {"pairs", SPARSEC_INT64, 3, {SPARSEC_DIM_BATCH, 4, 4}},
    {"turned", SPARSEC_INT32, 2, {4, SPARSEC_DIM_BATCH}},
#endif
    {"seen", SPARSEC_INT32, 2, {SPARSEC_DIM_BATCH, 3}},
    {"total", SPARSEC_INT64, 0, {0}},
};

static const sparsec_info info = {
    .abi_version = ABI,
    .length = LENGTH,
    .model = "fake",
    .target = "generic",
    .n_inputs = 3,
    .n_outputs = 5,
    .inputs = inputs,
    .outputs = outputs,
    .supports_lengths = SUPPORTS_LENGTHS,
    .mask_input = MASK_INPUT,
    .padding = PADDING,
};

const sparsec_info *sparsec_model_info(void)
{
    return &info;
}

size_t sparsec_workspace_size(int64_t batch, int32_t threads)
{
    return (size_t)batch * 1000 + (size_t)threads * 8 + 1;
}

typedef struct {
    const void *const *in;
    void *const *out;
    int64_t batch;
    const int32_t *lengths;
    int32_t threads;
    int64_t *totals; /* one for each thread, in the workspace */
    const int32_t *given; /* lengths, also where they are not supported */
} job;

static void one_sequence(void *arg, int32_t b, int32_t thread)
{
    const job *j = arg;
    const int64_t *ids = (const int64_t *)j->in[0] + (int64_t)b * TOKENS;
    const int64_t *mask = (const int64_t *)j->in[1] + (int64_t)b * TOKENS;
    const float *bias = j->in[2];
    float *hidden = (float *)j->out[0] + (int64_t)b * TOKENS * 3;
    int64_t *pairs = (int64_t *)j->out[1] + (int64_t)b * TOKENS * TOKENS;
    int32_t *turned = (int32_t *)j->out[2];
    int32_t *seen = (int32_t *)j->out[3] + (int64_t)b * 3;
    const int64_t real = j->lengths ? j->lengths[b] : TOKENS;

    if (bias[2] > 1000) { /* a slow model: as many microseconds */
        const long us = (long)bias[2];
        nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000}, NULL);
    }
    for (int64_t t = 0; t < TOKENS; t++) {
        for (int64_t c = 0; c < 3; c++)
            hidden[t * 3 + c] = t < real ? (float)(ids[t] * 2 + mask[t]) + bias[c] : 0;
        for (int64_t u = 0; u < TOKENS; u++)
            pairs[t * TOKENS + u] = t < real && u < real ? ids[t] * 1000 + ids[u] : 0;
        turned[t * j->batch + b] = t < real ? (int32_t)ids[t] + 1 : 0;
        if (t < real)
            j->totals[thread] += ids[t];
    }
    seen[0] = j->given ? j->given[b] : -1;
    seen[1] = LENGTH;
    seen[2] = j->threads;
}

/* The first wrong id, if there is one, goes to the start of the workspace. */
static int find_wrong(const int64_t *ids, int64_t batch, const int32_t *lengths, sparsec_index_error *found)
{
    for (int64_t i = 0; i < batch * TOKENS; i++)
        if (ids[i] >= 1000000 && (!lengths || i % TOKENS < lengths[i / TOKENS])) {
            *found = (sparsec_index_error){ids[i], 1000000, "words", "look up", 0, i};
            return 1;
        }
    return 0;
}

int sparsec_bad_index(const void *workspace, sparsec_index_error *error)
{
    *error = *(const sparsec_index_error *)workspace;
    return SPARSEC_OK;
}

int sparsec_run(const void *const *in, void *const *out, int64_t batch, const int32_t *lengths,
                void *workspace, const sparsec_parallel *parallel)
{
    const int32_t threads = parallel ? parallel->threads : 1;
    const size_t size = sparsec_workspace_size(batch, threads);
    if (batch < 1 || !workspace || batch == 666)
        return SPARSEC_BAD_ARGUMENT;
    if ((uintptr_t)workspace % 64 || (uintptr_t)in[0] % 8 || (uintptr_t)in[1] % 8
        || (uintptr_t)in[2] % 4)
        abort();
    memset(workspace, 0xa5, size);
    if (find_wrong(in[0], batch, lengths, workspace))
        return SPARSEC_BAD_INDEX;
    job j = {in, out, batch, SUPPORTS_LENGTHS ? lengths : NULL, parallel ? threads : 0, workspace, lengths};
    memset(j.totals, 0, (size_t)threads * 8);
    if (parallel)
        parallel->run(parallel, one_sequence, &j, (int32_t)batch);
    else
        for (int32_t b = 0; b < batch; b++)
            one_sequence(&j, b, 0);
    int64_t *total = out[4];
    *total = 0;
    for (int32_t t = 0; t < threads; t++)
        *total += j.totals[t];
    for (size_t i = (size_t)threads * 8; i < size; i++)
        if (((unsigned char *)workspace)[i] != 0xa5)
            abort();
    return SPARSEC_OK;
}
