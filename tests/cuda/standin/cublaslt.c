// In place of libcublasLt: every product has one algorithm, which takes no workspace.

#include <stdlib.h>
#include <string.h>

struct algorithm {
    unsigned long opaque[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

size_t cublasLtGetVersion(void) { return 130002; }
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d, void *preference, int most,
                                       struct algorithm *out, int *found) {
    memset(out, 0, sizeof *out);
    return *found = 1, 0;
}
int cublasLtMatmulDescCreate(void **out) { return *out = malloc(1), 0; }
int cublasLtMatmulPreferenceCreate(void **out) { return *out = malloc(1), 0; }
int cublasLtMatrixLayoutCreate(void **out) { return *out = malloc(1), 0; }
int cublasLtMatmulDescDestroy(void *it) { return free(it), 0; }
int cublasLtMatmulPreferenceDestroy(void *it) { return free(it), 0; }
int cublasLtMatrixLayoutDestroy(void *it) { return free(it), 0; }
