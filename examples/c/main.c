/* Runs one bucket of an artifact without Python:  main model.sparsec/bucket_16.so
 *
 *     cc -O2 -I ../../templates main.c -o main -ldl        (the header is also in the artifact)
 *
 * Feeds one sequence "101 2023 ... 102" with every token real, and prints the first numbers of the
 * first output, which must be float32. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "sparsec.h"

static int64_t count(const sparsec_tensor *t, const sparsec_info *info) {
    int64_t n = 1; /* of a batch of one */
    for (int i = 0; i < t->rank; i++)
        n *= t->dims[i] == SPARSEC_DIM_BATCH ? 1
           : t->dims[i] == SPARSEC_DIM_SEQUENCE ? info->length : t->dims[i];
    return n;
}

int main(int argc, char **argv) {
    void *lib = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!lib) return fprintf(stderr, "%s\n", argc == 2 ? dlerror() : "usage: main BUCKET.so"), 1;
    const sparsec_info *(*model_info)(void) = (const sparsec_info *(*)(void))dlsym(lib, "sparsec_model_info");
    size_t (*workspace_size)(int64_t, int32_t) = (size_t (*)(int64_t, int32_t))dlsym(lib, "sparsec_workspace_size");
    __typeof__(&sparsec_run) run = (__typeof__(&sparsec_run))dlsym(lib, "sparsec_run");
    __typeof__(&sparsec_bad_index) bad_index = (__typeof__(&sparsec_bad_index))dlsym(lib, "sparsec_bad_index");
    const sparsec_info *info = model_info();
    if (info->abi_version != SPARSEC_ABI_VERSION) return fprintf(stderr, "another ABI\n"), 1;

    const void *inputs[8];
    void *outputs[8];
    for (int i = 0; i < info->n_inputs; i++) {
        int64_t n = count(&info->inputs[i], info), *ids = calloc(n, sizeof *ids);
        for (int64_t j = 0; j < n && i < 2; j++) /* the ids, then the mask; token types stay 0 */
            ids[j] = i == 1 ? 1 : j == 0 ? 101 : j == n - 1 ? 102 : 2022 + j;
        inputs[i] = ids;
    }
    for (int i = 0; i < info->n_outputs; i++)
        outputs[i] = calloc(count(&info->outputs[i], info), 8);
    size_t bytes = (workspace_size(1, 1) + 63) / 64 * 64;
    void *workspace = aligned_alloc(64, bytes ? bytes : 64);
    sparsec_index_error bad;
    int status = run(inputs, outputs, 1, NULL, workspace, NULL);
    if (status == SPARSEC_BAD_INDEX && bad_index(workspace, &bad) == SPARSEC_OK)
        return fprintf(stderr, "input %d has %lld at element %lld, outside the table \"%s\" of %lld\n", bad.input,
                       (long long)bad.index, (long long)bad.position, bad.table, (long long)bad.extent), 1;
    if (status == SPARSEC_REFUSED)
        return fprintf(stderr, "the system does not let this process use the tile registers of target \"%s\"\n",
                       info->target), 1;
    if (status != SPARSEC_OK) return fprintf(stderr, "sparsec_run: error %d\n", status), 1;

    printf("%s on %s, %u tokens, %s:", info->model, info->target, info->length, info->outputs[0].name);
    for (int64_t j = 0, n = count(&info->outputs[0], info); j < n && j < 8; j++)
        printf(" %.5f", ((const float *)outputs[0])[j]);
    return putchar('\n') == EOF;
}
