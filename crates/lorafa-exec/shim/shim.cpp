// What tch lacks: any ATen operator through the dispatcher, inference mode, and a record of allocations.
//
// No exception leaves a function of this file. One that can fail returns false (or null) and leaves the message
// for `lorafa_error`, which is of this thread and good until the next failure.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/Allocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

thread_local std::string last_error;

template <typename F>
bool guarded(F&& body) {
    try {
        body();
        return true;
    } catch (const c10::Error& error) {
        last_error = error.what_without_backtrace();
    } catch (const std::exception& error) {
        last_error = error.what();
    } catch (...) {
        last_error = "an exception that is no std::exception";
    }
    return false;
}

struct Call {
    c10::OperatorHandle op;
    torch::jit::Stack arguments;
};

template <typename T>
bool push(void* call, T&& value) {
    return guarded([&] { static_cast<Call*>(call)->arguments.emplace_back(std::forward<T>(value)); });
}

// Bytes that libtorch's allocators gave and took on this thread since the last `lorafa_trace_take`.
struct Tracer : c10::MemoryReportingInfoBase {
    int64_t live = 0, peak = 0, allocated = 0, allocations = 0;

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

bool lorafa_push_tensor(void* call, const void* tensor) { return push(call, *static_cast<const at::Tensor*>(tensor)); }
bool lorafa_push_int(void* call, int64_t value) { return push(call, value); }
bool lorafa_push_double(void* call, double value) { return push(call, value); }
bool lorafa_push_bool(void* call, bool value) { return push(call, value); }
bool lorafa_push_string(void* call, const char* value) { return push(call, std::string(value)); }
bool lorafa_push_none(void* call) { return push(call, c10::IValue()); }

bool lorafa_push_ints(void* call, const int64_t* values, size_t count) {
    return push(call, std::vector<int64_t>(values, values + count));
}

bool lorafa_push_tensors(void* call, const void* const* tensors, size_t count) {
    std::vector<at::Tensor> list;
    for (size_t i = 0; i < count; ++i) list.push_back(*static_cast<const at::Tensor*>(tensors[i]));
    return push(call, std::move(list));
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

// Bytes allocated, number of allocations, most bytes live at once; counting begins anew.
void lorafa_trace_take(void* handle, int64_t* out) {
    auto& tracer = **static_cast<std::shared_ptr<Tracer>*>(handle);
    out[0] = tracer.allocated;
    out[1] = tracer.allocations;
    out[2] = tracer.peak;
    tracer.allocated = tracer.allocations = 0;
    tracer.peak = tracer.live = 0;
}

void lorafa_trace_stop(void* handle) {
    guarded([] { c10::ThreadLocalDebugInfo::_pop(c10::DebugInfoKind::PROFILER_STATE); });
    delete static_cast<std::shared_ptr<Tracer>*>(handle);
}

}  // extern "C"
