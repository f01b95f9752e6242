// Attention over paged keys and values.
//
// The positions of a sequence are cut into stretches at fixed places. Each row of queries, a token and a head, takes
// the softmax of a stretch by itself, relative to the stretch's own largest score, and folds the stretches together in
// order (https://arxiv.org/abs/1805.02867, https://arxiv.org/abs/2205.14135). So a row's bits are the same whether it
// is read as one of 1, 4 or 512 rows, and whether one thread takes all of its stretches or several share them.

#include <cstdlib>

#include "stretch.h"

namespace hatchway {

namespace {

constexpr int ITEM_ROWS = 96;    // of an item, where a token has fewer heads
constexpr int SHARED_ROWS = 32;  // up to so many rows the keys of a sequence may be shared among threads
constexpr int UNITS = 256;       // size of Parts.done

// ---- a step, cut into items

// A unit is what reads the same keys: some tokens of a sequence and the query heads of one kv head. It is one item, or
// several that have its stretches among them.
struct Item {
    int64_t sequence, head;      // kv head
    int64_t first, tokens;       // of the step
    int64_t position;            // of the first
    int64_t part, parts, unit;
};

int64_t unit_tokens(const Heads& heads) { return std::max<int64_t>(1, ITEM_ROWS / (heads.queries / heads.keys)); }

int64_t tokens_of(const Batch& batch, int64_t sequence) { return batch.starts[sequence + 1] - batch.starts[sequence]; }

int64_t count_units(const Batch& batch, const Heads& heads) {
    const int64_t most = unit_tokens(heads);
    int64_t chunks = 0;
    for (int64_t s = 0; s < batch.sequences; s++) chunks += (tokens_of(batch, s) + most - 1) / most;
    return chunks * heads.keys;
}

int64_t first_seen(const Heads& heads, int64_t position) {
    return heads.window > 0 ? std::max<int64_t>(0, position - heads.window + 1) : 0;
}

int64_t count_stretches(const Batch& batch, const Heads& heads, int64_t sequence) {
    const int64_t length = batch.lengths[sequence];
    return (length - 1) / STRETCH - first_seen(heads, length - tokens_of(batch, sequence)) / STRETCH + 1;
}

// Whether the keys of some sequence are shared: where there are too few units to keep all threads busy.
bool shares(int64_t units, int threads) { return threads > 1 && units < 4 * threads && units <= UNITS; }

int64_t count_parts(const Batch& batch, const Heads& heads, int64_t sequence, int64_t units, int threads) {
    const int64_t rows = tokens_of(batch, sequence) * (heads.queries / heads.keys);
    if (rows == 0 || rows > SHARED_ROWS || !shares(units, threads)) return 1;
    return std::min(count_stretches(batch, heads, sequence), (6 * threads + units - 1) / units);
}

// Floats that the results of a shared unit's stretches take, of any unit.
int64_t shared_size(const Batch& batch, const Heads& heads) {
    const int64_t group = heads.queries / heads.keys;
    int64_t most = 0;
    for (int64_t s = 0; s < batch.sequences; s++) {
        const int64_t rows = tokens_of(batch, s) * group;
        if (rows > 0 && rows <= SHARED_ROWS) most = std::max(most, rows * count_stretches(batch, heads, s));
    }
    return most * result_size(heads.width);
}

Item find_item(const Batch& batch, const Heads& heads, int64_t index, int64_t units, int threads) {
    const int64_t most = unit_tokens(heads);
    int64_t unit = 0;
    for (int64_t s = 0;; s++) {
        const int64_t tokens = tokens_of(batch, s), chunks = (tokens + most - 1) / most;
        const int64_t parts = count_parts(batch, heads, s, units, threads), items = chunks * heads.keys * parts;
        if (index >= items) {
            index -= items;
            unit += chunks * heads.keys;
            continue;
        }
        // The last tokens see the most positions: they go first, so that the threads end together.
        const int64_t chunk = chunks - 1 - index / (heads.keys * parts), within = index / parts % heads.keys;
        const int64_t first = chunk * most;
        return {s, within, batch.starts[s] + first, std::min(most, tokens - first),
                batch.lengths[s] - tokens + first, index % parts, parts, unit + chunk * heads.keys + within};
    }
}

// Where the positions of a stretch that an item reads lie, as vectors of one head: skipped .. count - 1. In the panels
// at both ends the first and the last stand in for their neighbours, which may belong to nobody.
void find_cells(const int32_t* table, int64_t block_size, int64_t first, int64_t skipped, int64_t count,
                int64_t* cells) {
    int64_t block = (first + skipped) / block_size, offset = (first + skipped) % block_size;
    for (int64_t i = skipped; i < count; block++, offset = 0) {
        const int64_t run = std::min(block_size - offset, count - i), start = table[block] * block_size + offset;
        for (int64_t j = 0; j < run; j++) cells[i + j] = start + j;
        i += run;
    }
    for (int64_t i = skipped / LANES * LANES; i < skipped; i++) cells[i] = cells[skipped];
    for (int64_t i = count; i % LANES != 0; i++) cells[i] = cells[count - 1];
}

struct Scratch {
    float* keys;     // [STRETCH / 8, d, 8]
    float* values;   // [STRETCH, d]
    float* scores;   // [BLOCK, STRETCH]
    float* stretch;     // [BLOCK] results
    float* results;  // [rows] results
    float* query;    // [rows, d]
};

Scratch divide(float* scratch, int64_t width, int64_t rows) {
    Scratch out;
    out.keys = scratch;
    out.values = out.keys + STRETCH * width;
    out.scores = out.values + STRETCH * width;
    out.stretch = out.scores + BLOCK * STRETCH;
    out.results = out.stretch + BLOCK * result_size(width);
    out.query = out.results + rows * result_size(width);
    return out;
}

// Rows of an item that see something of a stretch, one after another, and what each of them sees of it.
struct Sight {
    const Item& item;
    int64_t group, window, first;  // first: position of the stretch

    int64_t first_row() const { return std::max<int64_t>(0, first - item.position) * group; }

    int64_t end_row() const {
        if (window == 0) return item.tokens * group;
        return std::min(item.tokens, first + STRETCH + window - 1 - item.position) * group;
    }

    Range of(int64_t row) const {
        const int64_t position = item.position + row / group;
        const int64_t from = window > 0 ? std::max<int64_t>(0, position - window + 1 - first) : 0;
        return {static_cast<int>(from), static_cast<int>(std::min<int64_t>(STRETCH, position + 1 - first))};
    }
};

void begin(float* results, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++, results += result_size(width)) {
        std::fill(results, results + width, 0.0f);
        results[width] = -FLT_MAX;
        results[width + 1] = 0.0f;
    }
}

// Results of an item's rows, or of its shared unit's, as rows of `mixed`.
void finish(const Item& item, const Heads& heads, const float* results, float* mixed) {
    const int64_t width = heads.width, group = heads.queries / heads.keys;
    for (int64_t r = 0; r < item.tokens * group; r++, results += result_size(width)) {
        const int64_t head = item.head * group + r % group;
        float* to = mixed + ((item.first + r / group) * heads.queries + head) * width;
        const v8f total = splat(results[width + 1]);
        for (int64_t i = 0; i < width; i += LANES) store(to + i, load<v8f>(results + i) / total);
    }
}

// Results of all stretches, those of a stretch [rows], become the first stretch's.
void fold_stretches(const Item& item, const Heads& heads, int64_t first_stretch, int64_t stretches, const float* shared,
                float* results) {
    const int64_t size = result_size(heads.width), group = heads.queries / heads.keys, rows = item.tokens * group;
    begin(results, rows, heads.width);
    for (int64_t t = 0; t < stretches; t++, shared += rows * size) {
        const Sight sight{item, group, heads.window, (first_stretch + t) * STRETCH};
        for (int64_t r = sight.first_row(); r < sight.end_row(); r += BLOCK) {
            const int64_t count = std::min<int64_t>(BLOCK, sight.end_row() - r);
            fold(count, heads.width, shared + r * size, results + r * size);
        }
    }
}

template <int TYPE>
void attend_item(const float* query, int64_t stride, float* mixed, const Batch& batch, const Heads& heads, const KV& kv,
                 const Item& item, float* shared, const Scratch& scratch, Parts& parts) {
    const int64_t width = heads.width, group = heads.queries / heads.keys, rows = item.tokens * group;
    const int64_t size = result_size(width), head_cells = kv.num_blocks * kv.block_size;
    const int32_t* table = batch.tables + batch.table_starts[item.sequence];

    const v8f scale = splat(static_cast<float>(1.0 / std::sqrt(static_cast<double>(width))));
    for (int64_t r = 0; r < rows; r++) {
        const float* from = query + (item.first + r / group) * stride + (item.head * group + r % group) * width;
        for (int64_t i = 0; i < width; i += LANES) store(scratch.query + r * width + i, load<v8f>(from + i) * scale);
    }

    const int64_t seen = first_seen(heads, item.position), end = item.position + item.tokens;
    const int64_t first_stretch = seen / STRETCH, stretches = (end - 1) / STRETCH - first_stretch + 1;
    if (item.parts == 1) begin(scratch.results, rows, width);
    const int64_t begin_stretch = stretches * item.part / item.parts;
    const int64_t end_stretch = stretches * (item.part + 1) / item.parts;
    const auto skipped = [&](int64_t t) { return std::max<int64_t>(0, seen - (first_stretch + t) * STRETCH); };
    const auto count = [&](int64_t t) { return std::min<int64_t>(STRETCH, end - (first_stretch + t) * STRETCH); };
    const auto find = [&](int64_t t, int64_t* cells) {
        find_cells(table, kv.block_size, (first_stretch + t) * STRETCH, skipped(t), count(t), cells);
    };
    int64_t cells[2][STRETCH];
    find(begin_stretch, cells[begin_stretch % 2]);
    for (int64_t t = begin_stretch; t < end_stretch; t++) {
        const Sight sight{item, group, heads.window, (first_stretch + t) * STRETCH};
        const bool last = t + 1 == end_stretch;
        if (!last) find(t + 1, cells[(t + 1) % 2]);
        const Paged<TYPE> paged{kv, width, item.head * head_cells, (heads.keys + item.head) * head_cells,
                                cells[t % 2], cells[(t + 1) % 2], last ? 0 : count(t + 1)};
        const Expanded expanded{width, scratch.keys, scratch.values};
        const int64_t first_row = sight.first_row(), seeing = sight.end_row() - first_row;
        const int64_t blocks = (seeing + BLOCK - 1) / BLOCK;
        if (blocks > 1) expand(paged, skipped(t) / LANES * LANES, count(t), expanded);
        for (int64_t b = 0; b < blocks; b++) {  // of even sizes
            const int64_t row = first_row + seeing * b / blocks, next = first_row + seeing * (b + 1) / blocks;
            Range ranges[BLOCK];
            for (int64_t r = row; r < next; r++) ranges[r - row] = sight.of(r);
            const float* query_rows = scratch.query + row * width;
            float* results = item.parts == 1 ? scratch.stretch : shared + (t * rows + row) * size;
            if (blocks > 1) {
                read_stretch(next - row, expanded, query_rows, ranges, scratch.scores, results);
            } else {
                read_stretch(next - row, paged, query_rows, ranges, scratch.scores, results);
            }
            if (item.parts == 1) fold(next - row, width, results, scratch.results + row * size);
        }
    }
    if (item.parts > 1) {
        std::atomic<int32_t>& done = parts.done[item.unit];
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < item.parts) return;
        done.store(0, std::memory_order_relaxed);
        fold_stretches(item, heads, first_stretch, stretches, shared, scratch.results);
    }
    finish(item, heads, scratch.results, mixed);
}

}  // namespace

int64_t attention_items(const Batch& batch, const Heads& heads, int threads) {
    const int64_t units = count_units(batch, heads), most = unit_tokens(heads);
    if (!shares(units, threads)) return units;
    int64_t items = 0;
    for (int64_t s = 0; s < batch.sequences; s++) {
        const int64_t chunks = (tokens_of(batch, s) + most - 1) / most;
        items += chunks * heads.keys * count_parts(batch, heads, s, units, threads);
    }
    return items;
}

int64_t attention_scratch(const Batch& batch, const Heads& heads) {
    const int64_t width = heads.width, group = heads.queries / heads.keys;
    const int64_t rows = std::min<int64_t>(batch.tokens, unit_tokens(heads)) * group;
    const int64_t block = BLOCK * (STRETCH + result_size(width)), item = rows * (width + result_size(width));
    const int64_t floats = 2 * STRETCH * width + block + item;
    return (floats + 15) / 16 * 16;  // the next thread's begins on a line of its own
}

int64_t attention_parts(const Batch& batch, const Heads& heads, int threads) {
    const int64_t units = count_units(batch, heads);
    return shares(units, threads) ? units * shared_size(batch, heads) : 0;
}

void attend(const float* query, int64_t stride, float* mixed, const Batch& batch, const Heads& heads, const KV& kv,
            int64_t index, int threads, float* scratch, Parts& parts) {
    const int64_t units = count_units(batch, heads);
    const Item item = find_item(batch, heads, index, units, threads);
    const Scratch own = divide(scratch, heads.width, item.tokens * (heads.queries / heads.keys));
    float* shared = item.parts > 1 ? parts.results + item.unit * shared_size(batch, heads) : nullptr;
    if (kv.type == KV_FP32) {
        attend_item<KV_FP32>(query, stride, mixed, batch, heads, kv, item, shared, own, parts);
    } else if (kv.type == KV_FP16) {
        attend_item<KV_FP16>(query, stride, mixed, batch, heads, kv, item, shared, own, parts);
    } else {
        attend_item<KV_INT8>(query, stride, mixed, batch, heads, kv, item, shared, own, parts);
    }
}

}  // namespace hatchway

// ---- for callers outside of a step

using namespace hatchway;

#define EXPORT extern "C" __attribute__((visibility("default")))

// The attention of a step: query [T] rows, `stride` floats apart, to mixed [T, H * d]. 0, or 1: no memory.
EXPORT int hatchway_attention(Team* team, const float* query, int64_t stride, float* mixed, const Batch* batch,
                              const Heads* heads, const KV* kv) {
    struct Call {
        const float* query;
        int64_t stride;
        float* mixed;
        const Batch& batch;
        const Heads& heads;
        const KV& kv;
        int64_t items, scratch_size;
        int threads;
        float* scratch;
        Parts parts;
        Counter counter;
    };
    const int threads = team_size(team);
    const int64_t scratch_size = attention_scratch(*batch, *heads), shared = attention_parts(*batch, *heads, threads);
    const int64_t bytes = (threads * scratch_size + shared) * static_cast<int64_t>(sizeof(float));
    float* memory = static_cast<float*>(aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (memory == nullptr) return 1;
    Call call{query, stride, mixed, *batch, *heads, *kv, attention_items(*batch, *heads, threads), scratch_size,
              threads, memory, {}, {}};
    call.parts.results = memory + threads * scratch_size;
    run(team, [](void* context, int thread) {
        Call& own = *static_cast<Call*>(context);
        for (int64_t item; (item = own.counter.take()) < own.items;) {
            attend(own.query, own.stride, own.mixed, own.batch, own.heads, own.kv, item, own.threads,
                   own.scratch + thread * own.scratch_size, own.parts);
        }
    }, &call);
    free(memory);
    return 0;
}
