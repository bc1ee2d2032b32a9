// What tch lacks: any ATen operator through the dispatcher, inference mode, a record of allocations, and CUDA opened at
// run time, with its statistics; `placed.cpp` runs operators in memory that is given. Nothing here needs CUDA's headers.
//
// No exception leaves a function of the shim. One that can fail returns false (or null) and leaves the message
// for `lorafa_error`, which is of this thread and good until the next failure.

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "call.h"

thread_local std::string lorafa::last_error;
thread_local bool lorafa::out_of_memory = false;

namespace {

using lorafa::Call;
using lorafa::guarded;
using lorafa::last_error;
using lorafa::out_of_memory;

// Appends an argument, which `make` gives.
template <typename F>
bool push(void* call, F&& make) {
    return guarded([&] { static_cast<Call*>(call)->arguments.emplace_back(make()); });
}

// Bytes that libtorch's allocators gave and took on this thread since the last `lorafa_trace_take`.
struct Tracer : c10::MemoryReportingInfoBase {
    int64_t live = 0, start = 0, peak = 0, allocated = 0, allocations = 0;

    void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
        live += size;
        peak = std::max(peak, live);
        if (size > 0) {
            allocated += size;
            allocations += 1;
        }
    }
    bool memoryProfilingEnabled() const override { return true; }
};

}  // namespace

extern "C" {

const char* lorafa_error() { return last_error.c_str(); }

// Whether the failure was that a device has no memory left.
bool lorafa_out_of_memory() { return out_of_memory; }

// A call of `name.overload` that has no arguments yet; null if there is no such operator.
void* lorafa_call_new(const char* name, const char* overload) {
    Call* call = nullptr;
    guarded([&] {
        auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
        call = new Call{op, {}};
    });
    return call;
}

void lorafa_call_free(void* call) { delete static_cast<Call*>(call); }

bool lorafa_push_tensor(void* call, const void* tensor) {
    return push(call, [&] { return *static_cast<const at::Tensor*>(tensor); });
}
bool lorafa_push_int(void* call, int64_t value) { return push(call, [&] { return value; }); }
bool lorafa_push_double(void* call, double value) { return push(call, [&] { return value; }); }
bool lorafa_push_bool(void* call, bool value) { return push(call, [&] { return value; }); }
bool lorafa_push_string(void* call, const char* value) { return push(call, [&] { return std::string(value); }); }
bool lorafa_push_none(void* call) { return push(call, [] { return c10::IValue(); }); }
bool lorafa_push_undefined(void* call) { return push(call, [] { return at::Tensor(); }); }

bool lorafa_push_ints(void* call, const int64_t* values, size_t count) {
    return push(call, [&] { return std::vector<int64_t>(values, values + count); });
}

bool lorafa_push_tensors(void* call, const void* const* tensors, size_t count) {
    return push(call, [&] {
        std::vector<at::Tensor> list;
        for (size_t i = 0; i < count; ++i) list.push_back(*static_cast<const at::Tensor*>(tensors[i]));
        return list;
    });
}

// Whether there are as many arguments as the operator takes; it must be so before the call runs.
bool lorafa_call_check(void* call) {
    return guarded([&] {
        auto& self = *static_cast<Call*>(call);
        TORCH_CHECK(self.arguments.size() == self.op.schema().arguments().size(), "expected ",
                    self.op.schema().arguments().size(), " arguments, found ", self.arguments.size(), ": ",
                    self.op.schema());
    });
}

bool lorafa_call_run(void* call) {
    return guarded([&] {
        thread_local torch::jit::Stack stack;
        auto& self = *static_cast<Call*>(call);
        stack.assign(self.arguments.begin(), self.arguments.end());
        self.op.callBoxed(stack);
        stack.clear();
    });
}

// No autograd on this thread, and from now on no oneDNN in this process: its 16-bit products allocate scratch of sizes
// that nobody can plan.
void* lorafa_inference_new() {
    void* guard = nullptr;
    guarded([&] {
        static const bool once = (at::globalContext().setUserEnabledMkldnn(false), true);
        (void)once;
        guard = new c10::InferenceMode(true);
    });
    return guard;
}

void lorafa_inference_free(void* guard) { delete static_cast<c10::InferenceMode*>(guard); }

// Records allocations of this thread until `lorafa_trace_stop`. Traces do not nest.
void* lorafa_trace_start() {
    std::shared_ptr<Tracer>* tracer = nullptr;
    guarded([&] {
        tracer = new std::shared_ptr<Tracer>(std::make_shared<Tracer>());
        c10::ThreadLocalDebugInfo::_push(c10::DebugInfoKind::PROFILER_STATE, *tracer);
    });
    return tracer;
}

// Since the last time: bytes allocated, number of allocations, most bytes at once beyond those live then. Since the
// start: most bytes at once in this stretch.
void lorafa_trace_take(void* handle, int64_t* out) {
    auto& tracer = **static_cast<std::shared_ptr<Tracer>*>(handle);
    out[0] = tracer.allocated;
    out[1] = tracer.allocations;
    out[2] = tracer.peak - tracer.start;
    out[3] = tracer.peak;
    tracer.allocated = tracer.allocations = 0;
    tracer.start = tracer.peak = tracer.live;
}

void lorafa_trace_stop(void* handle) {
    guarded([] { c10::ThreadLocalDebugInfo::_pop(c10::DebugInfoKind::PROFILER_STATE); });
    delete static_cast<std::shared_ptr<Tracer>*>(handle);
}

// Opens libtorch_cuda, which lies next to libtorch_cpu; what it registers makes CUDA known to libtorch. libtorch looks
// for that once, the first time anything asks about CUDA.
bool lorafa_cuda_open() {
    return guarded([] {
        Dl_info cpu;
        // An object of libtorch_cpu itself.
        TORCH_CHECK(dladdr(&at::globalContext(), &cpu) != 0 && cpu.dli_fname, "libtorch_cpu is not found");
        std::string path = cpu.dli_fname;
        path.replace(path.rfind('/') + 1, std::string::npos, "libtorch_cuda.so");
        // It stays open, as what it registered points into it.
        if (!dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) {
            const char* why = dlerror();
            TORCH_CHECK(false, why ? why : path.c_str());
        }
    });
}

// Starts CUDA, allocator included, and counts its devices.
bool lorafa_cuda_devices(int64_t* count) {
    return guarded([&] {
        at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
        *count = at::globalContext().getAcceleratorHooksInterface(c10::DeviceType::CUDA).deviceCount();
    });
}

// Makes a CUDA device ready for products: cuBLAS's handle of this thread, and the workspace that libtorch's allocator gives
// it for good. Bytes in use on the device before that, and of the workspace.
bool lorafa_cuda_prepare(int64_t index, int64_t* out) {
    return guarded([&] {
        static std::mutex mutex;
        static std::map<int64_t, std::pair<int64_t, int64_t>> prepared;
        std::lock_guard<std::mutex> lock(mutex);
        auto found = prepared.find(index);
        if (found == prepared.end()) {
            c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
            c10::DeviceGuard guard(device);
            auto* allocator = at::getDeviceAllocator(device.type());
            auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
            auto allocated = [&] { return allocator->getDeviceStats(device.index()).allocated_bytes[all].current; };
            auto [free, total] = allocator->getMemoryInfo(device.index());
            // at::cuda::getCurrentCUDABlasHandle(), whose header takes CUDA's.
            auto handle = reinterpret_cast<void* (*)()>(dlsym(RTLD_DEFAULT, "_ZN2at4cuda24getCurrentCUDABlasHandleEv"));
            TORCH_CHECK(handle, "libtorch_cuda is not of the version that this program was built with");
            auto before = allocated();
            handle();
            found = prepared.emplace(index, std::pair(static_cast<int64_t>(total - free), allocated() - before)).first;
        }
        std::tie(out[0], out[1]) = found->second;
    });
}

// The name of a CUDA device, as the driver has it. libtorch's own way to it takes CUDA's headers.
bool lorafa_cuda_name(int64_t index, char* out, size_t size) {
    return guarded([&] {
        void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
        TORCH_CHECK(driver, "there is no driver");
        auto get = reinterpret_cast<int (*)(int*, int)>(dlsym(driver, "cuDeviceGet"));
        auto name = reinterpret_cast<int (*)(char*, int, int)>(dlsym(driver, "cuDeviceGetName"));
        int device = 0;
        bool found = get && name && get(&device, static_cast<int>(index)) == 0 &&
                     name(out, static_cast<int>(size), device) == 0;
        dlclose(driver);
        TORCH_CHECK(found, "the driver does not know it");
    });
}

// Free and total bytes of a CUDA device.
bool lorafa_memory(int64_t index, int64_t* out) {
    return guarded([&] {
        auto [free, total] = at::getDeviceAllocator(c10::DeviceType::CUDA)->getMemoryInfo(c10::DeviceIndex(index));
        out[0] = static_cast<int64_t>(free);
        out[1] = static_cast<int64_t>(total);
    });
}

// Most bytes allocated and reserved by libtorch's allocator of a CUDA device.
bool lorafa_peaks(int64_t index, int64_t* out) {
    return guarded([&] {
        auto stats = at::getDeviceAllocator(c10::DeviceType::CUDA)->getDeviceStats(c10::DeviceIndex(index));
        auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
        out[0] = stats.allocated_bytes[all].peak;
        out[1] = stats.reserved_bytes[all].peak;
    });
}

// Waits for all that was asked of a CUDA device.
bool lorafa_synchronize(int64_t index) {
    return guarded([&] { at::accelerator::synchronizeDevice(c10::DeviceIndex(index)); });
}

// Seeds a CUDA device's random numbers, or the CPU's for -1. `at::manual_seed` would ask about CUDA.
bool lorafa_seed(int64_t index, uint64_t seed) {
    return guarded([&] {
        auto device = index < 0 ? c10::Device(c10::DeviceType::CPU)
                                : c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
        auto generator = at::globalContext().defaultGenerator(device);
        std::lock_guard<std::mutex> lock(generator.mutex());
        generator.set_current_seed(seed);
    });
}

}  // extern "C"
