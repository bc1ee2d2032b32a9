// Operators that return fresh tensors, in memory that is given: while one runs, what it allocates on its device comes from
// there, and its results are copied to where they belong before anything else runs.
//
// libtorch's CUDA code takes memory from the one allocator that `CUDACachingAllocator::allocator` points to. Ours stands
// there meanwhile. It is a `DeviceAllocator`, of which CUDA's own allocators are subclasses, as their headers need CUDA's.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>

#include "call.h"

using lorafa::Call;
using lorafa::guarded;

namespace {

// What CUDA's allocators begin on multiples of.
constexpr size_t ALIGN = 512;

// The virtual functions that CUDA's allocators have and a `DeviceAllocator` has not: more of them than there are, so
// that a call of one is an error.
template <int N>
struct Others : Others<N - 1> {
    virtual void other(std::integral_constant<int, N>) { TORCH_CHECK(false, "only `allocate` is to be asked of planned memory"); }
};
template <>
struct Others<0> : c10::DeviceAllocator {};

// Gives out pieces of memory one after the other; nothing comes back before the next call.
class Planned final : public Others<64> {
  public:
    // From now on, what this thread allocates comes from here; what others do, from where it came before.
    void open(c10::Allocator* others, c10::Device device, char* start, size_t bytes) {
        usual = others;
        place = device;
        auto skip = (ALIGN - reinterpret_cast<uintptr_t>(start) % ALIGN) % ALIGN;
        next = start + std::min(skip, bytes);
        left = bytes - std::min(skip, bytes);
        given = 0;
        short_of = false;
        thread = std::this_thread::get_id();
    }
    void close() { thread = std::thread::id(); }

    size_t taken() const { return given; }
    bool ran_out() const { return short_of; }

    c10::DataPtr allocate(size_t n) override {
        if (std::this_thread::get_id() != thread) return usual.load()->allocate(n);
        if (n == 0) return {nullptr, place};
        size_t bytes = (n + ALIGN - 1) / ALIGN * ALIGN;
        short_of = bytes < n || bytes > left;
        TORCH_CHECK(!short_of, "it asks for ", n, " B after ", given, " B, and there are ", left, " B left of those planned");
        auto piece = std::exchange(next, next + bytes);
        left -= bytes;
        given += bytes;
        return {piece, piece, [](void*) {}, place};
    }

    bool initialized() override { return true; }
    void copy_data(void*, const void*, size_t) const override { refuse(); }
    void emptyCache(c10::MempoolId_t) override { refuse(); }
    void recordStream(const c10::DataPtr&, c10::Stream) override { refuse(); }
    c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override { refuse(); }
    void resetAccumulatedStats(c10::DeviceIndex) override { refuse(); }
    void resetPeakStats(c10::DeviceIndex) override { refuse(); }

  private:
    [[noreturn]] static void refuse() { TORCH_CHECK(false, "only `allocate` is to be asked of planned memory"); }

    std::atomic<c10::Allocator*> usual{nullptr};
    std::atomic<std::thread::id> thread{};
    c10::Device place = c10::kCPU;
    char* next = nullptr;
    size_t left = 0, given = 0;
    bool short_of = false;
};

std::mutex one_at_a_time;

// Lives on when no call does: another thread may have got hold of it.
Planned& planned() {
    static auto& allocator = *new Planned;
    return allocator;
}

using Slot = std::atomic<c10::Allocator*>;

// Where libtorch finds CUDA's allocator: a `std::atomic<CUDAAllocator*>` of libc10_cuda.
Slot& cuda_slot() {
    static auto slot = static_cast<Slot*>(dlsym(RTLD_DEFAULT, "_ZN3c104cuda20CUDACachingAllocator9allocatorE"));
    TORCH_CHECK(slot, "libc10_cuda has no allocator that can be replaced");
    return *slot;
}

// While it lives, the memory of a device is what is given.
struct Replaced {
    Replaced(c10::Device device, char* start, size_t bytes) : lock(one_at_a_time), on_cuda(device.is_cuda()) {
        usual = on_cuda ? cuda_slot().load() : c10::GetAllocator(c10::kCPU);
        planned().open(usual, device, start, bytes);
        put(&planned());
    }
    ~Replaced() {
        put(usual);
        planned().close();
    }

  private:
    void put(c10::Allocator* allocator) {
        if (on_cuda)
            cuda_slot().store(allocator);
        else
            c10::SetAllocator(c10::kCPU, allocator);
    }
    std::lock_guard<std::mutex> lock;
    bool on_cuda;
    c10::Allocator* usual;
};

// While it lives, kernels that have a way to give the same bits each time take it.
struct Deterministic {
    Deterministic() {
        context.setDeterministicAlgorithms(true, false);
        context.setDeterministicFillUninitializedMemory(false);
    }
    ~Deterministic() {
        context.setDeterministicAlgorithms(algorithms, warn_only);
        context.setDeterministicFillUninitializedMemory(fill);
    }

  private:
    at::Context& context = at::globalContext();
    bool algorithms = context.deterministicAlgorithms();
    bool warn_only = context.deterministicAlgorithmsWarnOnly();
    bool fill = context.deterministicFillUninitializedMemory();
};

}  // namespace

extern "C" {

// Runs a call on a CUDA device, or the CPU for -1, in these bytes, and copies its first results to `outs`. `taken` is what
// it took of them, and -1 if that was too little; then nothing ran that writes elsewhere.
bool lorafa_call_placed(const void* call, int64_t index, void* start, size_t bytes, const void* const* outs, size_t count,
                        int64_t* taken) {
    return guarded([&] {
        auto& self = *static_cast<const Call*>(call);
        auto device = index < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
        // The results end before the memory that they lie in is used again.
        torch::jit::Stack stack = self.arguments;
        {
            Deterministic same_bits;
            Replaced memory(device, static_cast<char*>(start), bytes);
            try {
                self.op.callBoxed(stack);
            } catch (...) {
                *taken = planned().ran_out() ? -1 : 0;
                throw;
            }
            *taken = static_cast<int64_t>(planned().taken());
        }
        TORCH_CHECK(stack.size() >= count, self.op.schema().name(), " gives ", stack.size(), " results");
        for (size_t i = 0; i < count; ++i) {
            auto& out = *static_cast<const at::Tensor*>(outs[i]);
            auto result = stack[i].toTensor();
            TORCH_CHECK(result.sizes() == out.sizes() && result.scalar_type() == out.scalar_type(), "result ", i, " of ",
                        self.op.schema().name(), " is ", result.scalar_type(), result.sizes(), ", not ", out.scalar_type(),
                        out.sizes());
            out.copy_(result);
        }
    });
}

// The major and the minor number of what a CUDA device can do.
bool lorafa_cuda_capability(int64_t index, int64_t* out) {
    return guarded([&] {
        // Of the runtime that libtorch itself asks.
        auto get = reinterpret_cast<int (*)(int*, int, int)>(dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute"));
        constexpr int numbers[] = {75, 76};
        for (int i = 0; i < 2; ++i) {
            int value = 0;
            TORCH_CHECK(get && get(&value, numbers[i], static_cast<int>(index)) == 0, "CUDA does not say what the device can do");
            out[i] = value;
        }
    });
}

}  // extern "C"
