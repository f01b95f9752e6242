// A fixed team of threads that runs one function at a time.
//
// Threads spin for a moment when they wait, for a step has some 150 meetings, each a few microseconds of work apart;
// then they give way: at a meeting to whoever wants the processor, between steps by sleeping. The gateway, the
// tokenizer and torch's own threads live on the same cores.

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include <sched.h>

#include "cpu.h"

namespace hatchway {

namespace {

constexpr int SPINS = 2000;                             // of a pause each: some 30 us, before a meeting yields
constexpr std::chrono::microseconds AWAKE{150};  // after a step: Python is back with the next one by then, or idle

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

struct Team {
    explicit Team(int count) : size(count) {}

    const int size;
    std::vector<std::thread> threads;
    void (*body)(void*, int) = nullptr;
    void* context = nullptr;
    bool ending = false;
    std::mutex mutex;
    std::condition_variable called;
    std::condition_variable finished;
    bool caller_sleeps = false;
    alignas(64) std::atomic<uint64_t> round{0};   // of `run`
    alignas(64) std::atomic<int> working{0};      // threads other than the caller that are in the body
    alignas(64) std::atomic<int> arrived{0};      // at the meeting
    alignas(64) std::atomic<uint32_t> meeting{0};  // meetings that are over

    void serve(int thread) {
        uint64_t seen = 0;
        for (;;) {
            if (!awake_for(seen)) {
                std::unique_lock<std::mutex> lock(mutex);
                called.wait(lock, [&] { return round.load(std::memory_order_acquire) != seen; });
            }
            seen = round.load(std::memory_order_acquire);
            if (ending) return;
            body(context, thread);
            if (working.fetch_sub(1, std::memory_order_acq_rel) == 1) {
                std::lock_guard<std::mutex> lock(mutex);
                if (caller_sleeps) finished.notify_one();
            }
        }
    }

    bool awake_for(uint64_t seen) {
        const auto until = std::chrono::steady_clock::now() + AWAKE;
        do {
            for (int spin = 0; spin < 200; spin++) {
                if (round.load(std::memory_order_acquire) != seen) return true;
                pause();
            }
        } while (std::chrono::steady_clock::now() < until);
        return false;
    }
};

Team* start_team(int threads) {
    Team* team = new Team(threads < 1 ? 1 : threads);
    try {
        for (int thread = 1; thread < team->size; thread++) team->threads.emplace_back(&Team::serve, team, thread);
    } catch (...) {  // the system has no more threads
        const int started = 1 + static_cast<int>(team->threads.size());
        end_team(team);
        return started == 1 ? new Team(1) : start_team(started);
    }
    return team;
}

void end_team(Team* team) {
    {
        std::lock_guard<std::mutex> lock(team->mutex);
        team->ending = true;
        team->round.fetch_add(1, std::memory_order_release);
    }
    team->called.notify_all();
    for (auto& thread : team->threads) thread.join();
    delete team;
}

int team_size(const Team* team) { return team->size; }

void run(Team* team, void (*body)(void*, int), void* context) {
    if (team->size == 1) return body(context, 0);
    team->body = body;
    team->context = context;
    team->working.store(team->size - 1, std::memory_order_relaxed);
    {
        std::lock_guard<std::mutex> lock(team->mutex);
        team->round.fetch_add(1, std::memory_order_release);
    }
    team->called.notify_all();
    body(context, 0);
    for (int spin = 0; spin < SPINS; spin++) {
        if (team->working.load(std::memory_order_acquire) == 0) return;
        pause();
    }
    std::unique_lock<std::mutex> lock(team->mutex);
    team->caller_sleeps = true;
    team->finished.wait(lock, [&] { return team->working.load(std::memory_order_acquire) == 0; });
    team->caller_sleeps = false;
}

void meet(Team* team) {
    if (team->size == 1) return;
    const uint32_t before = team->meeting.load(std::memory_order_acquire);
    if (team->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == team->size) {
        team->arrived.store(0, std::memory_order_relaxed);
        team->meeting.fetch_add(1, std::memory_order_release);
        return;
    }
    for (int spin = 0;; spin++) {
        if (team->meeting.load(std::memory_order_acquire) != before) return;
        if (spin < SPINS) pause();
        else sched_yield();
    }
}

}  // namespace hatchway
