// A call of an ATen operator, and how errors leave the shim.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <string>

namespace lorafa {

extern thread_local std::string last_error;
extern thread_local bool out_of_memory;

template <typename F>
bool guarded(F&& body) {
    out_of_memory = false;
    try {
        body();
        return true;
    } catch (const c10::OutOfMemoryError& error) {
        out_of_memory = true;
        last_error = error.what_without_backtrace();
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

}  // namespace lorafa
