// Enough of CUDA to run a plain kernel on the CPU: thread blocks one after another, the threads of a block as fibres of
// one OS thread that change places at __syncthreads alone. So a run is deterministic, and a kernel that lacks a barrier
// gives another answer when the threads go in the opposite order.
#pragma once

#ifdef __APPLE__
#define _XOPEN_SOURCE 700  // without it there is no ucontext.h
#endif

#include <math.h>
#include <stddef.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__ static
#define __constant__ static const
// One copy per OS thread serves all threads of a block, because only one block runs at a time.
#define __shared__ thread_local
#define __syncthreads() shim::leave(shim::WAITING)

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }

namespace shim {

constexpr size_t STACK = 1 << 16;
constexpr size_t SHARED = (48 << 10) / sizeof(float);  // what every device has

enum State { WAITING, DONE };
enum Outcome { FINE, DIVERGED, OVERRUN };

struct Index { unsigned x = 0, y = 0, z = 0; };

struct Fibre {
    ucontext_t context;
    State state;
    std::unique_ptr<char[]> stack{new char[STACK]};
};

thread_local ucontext_t scheduler;
thread_local Fibre* running;
thread_local const std::function<void()>* kernel_call;

inline void leave(State state)
{
    running->state = state;
    swapcontext(&running->context, &scheduler);
}

inline void enter()
{
    (*kernel_call)();
    leave(DONE);
}

}  // namespace shim

alignas(16) thread_local float memory[shim::SHARED];
thread_local shim::Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

// Every thread runs to its next barrier, in order or backwards; then every thread again, until all have returned.
inline Outcome run_block(std::vector<Fibre>& fibres, bool backwards)
{
    const size_t n = fibres.size();
    for (Fibre& fibre : fibres) {
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = STACK;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, enter, 0);
    }
    for (size_t done = 0; done < n;) {
        done = 0;
        for (size_t k = 0; k < n; ++k) {
            threadIdx.x = (unsigned)(backwards ? n - 1 - k : k);
            running = &fibres[threadIdx.x];
            swapcontext(&scheduler, &running->context);
            done += running->state == DONE;
        }
        if (done > 0 && done < n) return DIVERGED;
    }
    return FINE;
}

inline Outcome run_grid(const unsigned* grid, unsigned threads, size_t shared, bool backwards)
{
    std::vector<Fibre> fibres(threads);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    // What nobody has written is NaN, and what nobody asked for stays so.
    std::fill(memory, memory + SHARED, NAN);
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x) {
                std::fill(memory, memory + shared, NAN);
                if (run_block(fibres, backwards) == DIVERGED) return DIVERGED;
            }
    return std::all_of(memory + shared, memory + SHARED, [](float v) { return isnan(v); }) ? FINE : OVERRUN;
}

template <class... Args, size_t... I>
std::function<void()> with_arguments(void (*kernel)(Args...), void** args, std::index_sequence<I...>)
{
    return [=] { kernel(*static_cast<Args*>(args[I])...); };
}

template <class... Args>
Outcome launch(void (*kernel)(Args...), const unsigned* grid, unsigned threads, size_t shared, void** args,
               bool backwards)
{
    const std::function<void()> call = with_arguments(kernel, args, std::index_sequence_for<Args...>{});
    kernel_call = &call;
    return run_grid(grid, threads, shared, backwards);
}

template <class T> constexpr char CODE = '?';
template <> constexpr char CODE<int> = 'i';
template <> constexpr char CODE<unsigned char> = 'B';
template <> constexpr char CODE<float> = 'f';
template <> constexpr char CODE<float2> = 'f';
template <> constexpr char CODE<double2> = 'd';

// What a kernel takes: for each argument its type as a letter of NumPy's, with * where it is a pointer.
template <class... Args> std::string signature(void (*)(Args...))
{
    std::string text;
    (((text += CODE<std::remove_const_t<std::remove_pointer_t<Args>>>) += std::is_pointer_v<Args> ? "*" : ""), ...);
    return text;
}

}  // namespace shim

// The functions that Python calls.
#define LAUNCHER(NAME)                                                                                                \
    extern "C" const char* signature_##NAME()                                                                         \
    {                                                                                                                 \
        static const std::string text = shim::signature(NAME);                                                        \
        return text.c_str();                                                                                          \
    }                                                                                                                 \
    extern "C" int launch_##NAME(const unsigned* grid, unsigned threads, size_t shared, void** args, int backwards)   \
    {                                                                                                                 \
        return shim::launch(NAME, grid, threads, shared, args, backwards != 0);                                       \
    }
