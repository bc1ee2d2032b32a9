// In place of the file that comes with nvcc alone: what the headers of the runtime need for C.
#define CUDARTAPI
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __cudart_builtin__
#define __device_builtin__
#define __device__
#define __host__
