// In place of libcudart: one GPU with the properties of an H200. Memory is address space of the process, kernels are not run,
// everything that was asked for is done at once.
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

// Memory.

#define GRANULE (2ul << 20)  // of cudaMalloc
#define BLOCKS 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char *start;
    size_t bytes;
} blocks[BLOCKS];
static int count;
static size_t used = 512ul << 20;  // about what a context takes

// Bytes of the device; STANDIN_MEMORY sets them.
static size_t total(void) {
    const char *given = getenv("STANDIN_MEMORY");
    return given ? strtoull(given, NULL, 10) : 150754820096ul;
}

cudaError_t cudaMalloc(void **out, size_t bytes) {
    size_t size = (bytes + GRANULE - 1) / GRANULE * GRANULE;
    cudaError_t result = cudaErrorMemoryAllocation;
    pthread_mutex_lock(&lock);
    if (size <= total() - used && count < BLOCKS) {
        // Pages that nobody touches take no memory.
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        char *start = mmap(NULL, size + GRANULE, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (start != MAP_FAILED) {
            start += GRANULE - (size_t)start % GRANULE;
            blocks[count].start = start;
            blocks[count++].bytes = size;
            used += size;
            *out = start;
            result = cudaSuccess;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

// The block of an address, or -1.
static int find(const void *address) {
    const char *at = address;
    for (int i = 0; i < count; i++)
        if (at >= blocks[i].start && at < blocks[i].start + blocks[i].bytes) return i;
    return -1;
}

cudaError_t cudaFree(void *start) {
    pthread_mutex_lock(&lock);
    int i = find(start);
    if (i >= 0) {
        munmap(blocks[i].start, blocks[i].bytes);
        used -= blocks[i].bytes;
        blocks[i] = blocks[--count];
    }
    pthread_mutex_unlock(&lock);
    return start && i < 0 ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *all) {
    *all = total();
    *free = total() - used;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *address) {
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&lock);
    int device = find(address) >= 0;
    pthread_mutex_unlock(&lock);
    out->type = device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    out->device = device ? 0 : -1;
    out->devicePointer = device ? (void *)address : NULL;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    memmove(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    memset(to, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    return cudaMemset(to, value, bytes);
}
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags) {
    return posix_memalign(out, 4096, bytes) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void *start) {
    free(start);
    return cudaSuccess;
}

// The device.

cudaError_t cudaGetDeviceCount(int *out) { return *out = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int *out) { return *out = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *out) { return *out = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *out) { return *out = 13000, cudaSuccess; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int device) {
    memset(out, 0, sizeof *out);
    strcpy(out->name, "stand-in for an H200");
    out->totalGlobalMem = total();
    out->major = 9;
    out->multiProcessorCount = 132;
    out->warpSize = 32;
    out->maxThreadsPerBlock = out->maxThreadsDim[0] = out->maxThreadsDim[1] = 1024;
    out->maxThreadsDim[2] = 64;
    out->maxThreadsPerMultiProcessor = 2048;
    out->maxBlocksPerMultiProcessor = 32;
    out->maxGridSize[0] = 2147483647;
    out->maxGridSize[1] = out->maxGridSize[2] = 65535;
    out->regsPerBlock = out->regsPerMultiprocessor = 65536;
    out->sharedMemPerBlock = 48 << 10;
    out->sharedMemPerBlockOptin = 227 << 10;
    out->sharedMemPerMultiprocessor = 228 << 10;
    out->reservedSharedMemPerBlock = 1 << 10;
    out->l2CacheSize = 50 << 20;
    out->totalConstMem = 64 << 10;
    out->textureAlignment = 512;
    out->unifiedAddressing = out->concurrentKernels = out->cooperativeLaunch = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *out, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp p;
    cudaGetDeviceProperties(&p, device);
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *out = p.major; break;
        case cudaDevAttrComputeCapabilityMinor: *out = p.minor; break;
        case cudaDevAttrMultiProcessorCount: *out = p.multiProcessorCount; break;
        case cudaDevAttrWarpSize: *out = p.warpSize; break;
        case cudaDevAttrMaxThreadsPerBlock: *out = p.maxThreadsPerBlock; break;
        case cudaDevAttrMaxGridDimX: *out = p.maxGridSize[0]; break;
        case cudaDevAttrMaxGridDimY: *out = p.maxGridSize[1]; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *out = p.sharedMemPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *out = p.sharedMemPerBlockOptin; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *out = p.sharedMemPerMultiprocessor; break;
        default: *out = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *out, int size, int device) { return strncpy(out, "0000:00:00.0", size), cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *out, int device, int peer) { return *out = 0, cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) { return *least = 0, *most = -5, cudaSuccess; }

const char *cudaGetErrorName(cudaError_t error) { return error ? "cudaError" : "cudaSuccess"; }
const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : error ? "an error of the stand-in" : "no error";
}

// No function of the driver is handed out; libtorch does without those that it asks for here.
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version, unsigned long long flags,
                                                 enum cudaDriverEntryPointQueryResult *result) {
    *out = NULL;
    if (result) *result = cudaDriverEntryPointSymbolNotFound;
    return cudaErrorSymbolNotFound;
}

// Streams and events.

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority) { return *out = malloc(1), cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *out) {
    return *out = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *out, unsigned long long *id,
                                         cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                         size_t *nodes_count) {
    if (id) *id = 0;
    return *out = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) { return *out = malloc(1), cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *out, cudaEvent_t from, cudaEvent_t to) { return *out = 0, cudaSuccess; }

// Kernels.

cudaError_t __cudaGetKernel(cudaKernel_t *out, const void *function) { return *out = (cudaKernel_t)function, cudaSuccess; }
cudaError_t cudaGetSymbolAddress(void **out, const void *symbol) { return *out = (void *)symbol, cudaSuccess; }

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *function) {
    memset(out, 0, sizeof *out);
    out->maxThreadsPerBlock = 1024;
    out->maxDynamicSharedSizeBytes = 48 << 10;
    out->numRegs = 32;
    out->ptxVersion = out->binaryVersion = 90;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *out, const void *function, int threads, size_t shared,
                                                                       unsigned flags) {
    return *out = 2048 / (threads < 64 ? 64 : threads), cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *out, const void *function, int threads, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(out, function, threads, shared, 0);
}

// What nvcc makes of `kernel<<<…>>>` and of a file with kernels.
static __thread struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} launch;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    launch.grid = grid;
    launch.block = block;
    launch.shared = shared;
    launch.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = launch.grid;
    *block = launch.block;
    *shared = launch.shared;
    *(void **)stream = launch.stream;
    return cudaSuccess;
}
void **__cudaRegisterFatBinary(void *binary) { return malloc(sizeof(void *)); }
