// In place of libcuda: what libtorch asks of the driver itself, whether there is a context.

#include <stdio.h>

int cuDeviceGet(int *out, int index) { return *out = index, 0; }
int cuDeviceGetName(char *out, int size, int device) { return snprintf(out, size, "stand-in for an H200"), 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *flags = 0, *active = 1, 0; }
int cuDevicePrimaryCtxRetain(void **out, int device) { return *out = (void *)1, 0; }
int cuCtxGetCurrent(void **out) { return *out = (void *)1, 0; }
