// In place of libcublas: products of matrices that nobody computes.

#include <stdlib.h>

int cublasCreate_v2(void **out) { return *out = malloc(1), 0; }
int cublasGetMathMode(void *handle, int *out) { return *out = 0, 0; }
int cublasGetPointerMode_v2(void *handle, int *out) { return *out = 0, 0; }
