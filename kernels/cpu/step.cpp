// One step of a decoder: every layer for all tokens of a batch, in one call.
//
// The threads go through the step together. What a phase needs from all of them stands behind a meeting; between two
// meetings they take items of a phase from each other. Rows of one or two tokens are prepared by each thread for
// itself: that is quicker than meeting.

#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>

namespace hatchway {

namespace {

constexpr int PRIVATE_ROWS = 2;
constexpr int PHASES = 4;  // counters in use: a phase's is set back two phases later

// Memory that grows and is never given back: the next step is as large.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { free(data_); }

    T* reserve(int64_t count) {
        if (count > size_) {
            free(data_);
            size_ = 0;
            data_ = static_cast<T*>(aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64));
            if (data_ == nullptr) throw std::bad_alloc();
            size_ = count;
        }
        return data_;
    }
    T* get() const { return data_; }

  private:
    T* data_ = nullptr;
    int64_t size_ = 0;
};

// Rows of activations: as fp32, and as blocks of both spans.
struct Rows {
    Buffer<float> floats;
    Buffer<int16_t> q[2];
    Buffer<float> scale[2];
    Buffer<float> sum[2];
    Blocks blocks[2] = {};

    void reserve(int64_t rows, int64_t columns) {
        floats.reserve(rows * columns);
        for (int which = 0; which < 2; which++) {
            const int64_t span = which ? 16 : 32, count = (columns + span - 1) / span;
            q[which].reserve(rows * count * span);
            scale[which].reserve(rows * count);
            sum[which].reserve(rows * count);
        }
    }

    // Says how wide the rows are from here on; the memory for them is there.
    void shape(int64_t columns) {
        for (int which = 0; which < 2; which++) {
            const int32_t span = which ? 16 : 32;
            blocks[which] = {q[which].get(), scale[which].get(), sum[which].get(), span,
                             static_cast<int32_t>((columns + span - 1) / span)};
        }
    }
};

bool needs(const Stack& stack, int span) {
    for (int i = 0; i < stack.count; i++) {
        if (stack.parts[i].kind != FP32 && stack.parts[i].span == span) return true;
    }
    return false;
}

void copy_row(const Blocks& from, int64_t source, const Blocks& to, int64_t target) {
    const int64_t width = static_cast<int64_t>(from.blocks) * from.span;
    memcpy(to.q + target * width, from.q + source * width, width * sizeof(int16_t));
    memcpy(to.scale + target * from.blocks, from.scale + source * from.blocks, from.blocks * sizeof(float));
    memcpy(to.sum + target * from.blocks, from.sum + source * from.blocks, from.blocks * sizeof(float));
}

int32_t best_of(const float* logits, int64_t count) {
    v8f top = splat(-__builtin_inff());
    v8i bits = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const v8f x = load<v8f>(logits + i);
        const v8i size = (v8i)magnitude(x);
        top = max(x, top);
        bits = size > bits ? size : bits;
    }
    float most = largest(top);
    for (int lane = 0; lane < 8; lane++) {
        if (bits[lane] >= 0x7f800000) return -1;
    }
    for (; i < count; i++) {
        if (!std::isfinite(logits[i])) return -1;
        most = logits[i] > most ? logits[i] : most;
    }
    const v8f wanted = splat(most);
    for (i = 0; i + 8 <= count; i += 8) {
        const v8i same = load<v8f>(logits + i) == wanted;
        for (int lane = 0; lane < 8; lane++) {
            if (same[lane]) return static_cast<int32_t>(i + lane);
        }
    }
    for (; i < count; i++) {
        if (logits[i] == most) return static_cast<int32_t>(i);
    }
    return -1;
}

}  // namespace

struct Workspace {
    explicit Workspace(int threads) : attention(threads), own(threads) {}

    Buffer<float> x;        // [T, D], the residual stream
    Buffer<float> qkv;      // [T, (H + 2K) d]
    Buffer<float> mixed;    // [T, H d]
    Buffer<float> gate_up;  // [T or T k, 2F]
    Buffer<float> results;  // [T k, D], of experts
    Buffer<float> routed;   // [T, E]
    std::vector<Buffer<float>> attention;  // scratch of each thread
    Parts parts = {};
    Buffer<float> part_results;
    Rows shared;
    Rows gathered;           // [T k], by expert
    std::vector<Rows> own;   // of each thread, for few rows
    std::vector<int32_t> places;   // [T k]: where a token's expert has its row among the gathered
    std::vector<int32_t> sources;  // [T k]: token of each gathered row
    std::vector<float> shares;     // [T k]
    std::vector<int32_t> starts;   // [E + 1] among the gathered rows
    std::vector<int32_t> order, chosen, next;  // of `route`
    Counter counters[PHASES];
};

namespace {

struct Run {
    Team* team;
    Workspace& space;
    const Model& model;
    const Step& step;
    const int threads;
};

// What one thread does of a step.
class Hand {
  public:
    Hand(const Run& run, int thread)
        : run_(run), space_(run.space), model_(run.model), step_(run.step), tokens_(run.step.batch.tokens),
          thread_(thread) {}

    void work() {
        each(tokens_, [&](int64_t token) {
            expand(model_.embedding, step_.batch.ids[token], space_.x.get() + token * model_.width);
        });
        for (int32_t index = 0; index < model_.num_layers; index++) {
            const Layer& layer = model_.layers[index];
            attend_all(layer, step_.memory[index]);
            if (layer.experts.count > 0) mix_experts(layer);
            else feed_forward(layer);
        }
        finish();
    }

  private:
    const Run& run_;
    Workspace& space_;
    const Model& model_;
    const Step& step_;
    const int64_t tokens_;
    const int thread_;
    int phase_ = 0;

    // body(item) for each of `count` items, shared out between the threads; then all meet.
    template <class Body>
    void each(int64_t count, Body body) {
        Counter& counter = take_counter();
        for (int64_t item; (item = counter.take()) < count;) body(item);
        meet(run_.team);
    }

    Counter& take_counter() {
        Counter& counter = space_.counters[phase_ % PHASES];
        if (thread_ == 0) space_.counters[(phase_ + 2) % PHASES].reset();
        phase_++;
        return counter;
    }

    void expand(const Stack& stack, int64_t row, float* out) {
        for (int i = 0; i < stack.count; i++) {
            if (row < stack.parts[i].rows) return expand_row(stack.parts[i], row, out);
            row -= stack.parts[i].rows;
        }
    }

    // make(row, floats) gives each row as fp32, in `floats` or elsewhere, and says where; it is quantised as `wanted`
    // needs it. With few rows each thread makes them all for itself.
    template <class Make>
    Rows& prepare(int64_t count, int64_t columns, const Stack& wanted, Make make) {
        const bool alone = count <= PRIVATE_ROWS;
        Rows& rows = alone ? space_.own[thread_] : space_.shared;
        if (alone || thread_ == 0) rows.shape(columns);
        if (!alone) meet(run_.team);
        const bool spans[2] = {needs(wanted, 32), needs(wanted, 16)};
        auto one = [&](int64_t row) {
            const float* floats = make(row, rows.floats.get() + row * columns);
            for (int which = 0; which < 2; which++) {
                if (spans[which]) quantise(floats, static_cast<int32_t>(columns), rows.blocks[which], row);
            }
        };
        if (alone) {
            for (int64_t row = 0; row < count; row++) one(row);
        } else {
            each(count, one);
        }
        return rows;
    }

    Activations activations(const Rows& rows, const Matrix& matrix, const float* floats, int64_t ld, int64_t start,
                            int64_t count) {
        Activations x = {floats + start * ld, ld, {}, count};
        if (matrix.kind == FP32) return x;
        x.blocks = rows.blocks[matrix.span == 16];
        x.blocks.q += start * x.blocks.blocks * x.blocks.span;
        x.blocks.scale += start * x.blocks.blocks;
        x.blocks.sum += start * x.blocks.blocks;
        return x;
    }

    // Items of the counter, from `taken` on, that belong to this product. `item` is the thread's current one.
    void project(const Stack& stack, const Rows& rows, const float* floats, int64_t ld, int64_t start, int64_t count,
                 Target target, Counter& counter, int64_t& item, int64_t& base) {
        for (int i = 0; i < stack.count; i++) {
            const Matrix& matrix = stack.parts[i];
            const Variant variant = variant_of(matrix, count);
            const int64_t items = product_items(matrix, count, variant, run_.threads);
            if (item < base + items) {
                const Activations x = activations(rows, matrix, floats, ld, start, count);
                for (; item < base + items; item = counter.take()) {
                    multiply(matrix, x, target, variant, item - base, run_.threads);
                }
            }
            base += items;
            target.out += matrix.rows;
            if (target.bias != nullptr) target.bias += matrix.rows;
        }
    }

    void project(const Stack& stack, const Rows& rows, const float* floats, int64_t ld, int64_t count,
                 const Target& target) {
        Counter& counter = take_counter();
        int64_t item = counter.take(), base = 0;
        project(stack, rows, floats, ld, 0, count, target, counter, item, base);
        meet(run_.team);
    }

    void attend_all(const Layer& layer, const KV& kv) {
        const Heads& heads = layer.heads;
        const int64_t width = model_.width, mixed_width = static_cast<int64_t>(heads.queries) * heads.width;
        const int64_t qkv_width = layer.qkv.rows;
        float *x = space_.x.get(), *qkv = space_.qkv.get(), *mixed = space_.mixed.get();
        Rows& normed = prepare(tokens_, width, layer.qkv, [&](int64_t row, float* floats) {
            rms_norm(x + row * width, layer.attention_norm, floats, model_.width, model_.eps);
            return floats;
        });
        project(layer.qkv, normed, normed.floats.get(), width, tokens_, {qkv, qkv_width, layer.qkv_bias, false});
        each(tokens_, [&](int64_t token) { place(qkv + token * qkv_width, step_.batch, heads, kv, token); });
        each(attention_items(step_.batch, heads, run_.threads), [&](int64_t item) {
            attend(qkv, qkv_width, mixed, step_.batch, heads, kv, item, run_.threads, space_.attention[thread_].get(),
                   space_.parts);
        });
        Rows& ready = prepare(tokens_, mixed_width, layer.attention_out, [&](int64_t row, float*) {
            return mixed + row * mixed_width;
        });
        project(layer.attention_out, ready, mixed, mixed_width, tokens_, {x, width, layer.attention_out_bias, true});
    }

    void feed_forward(const Layer& layer) {
        const int64_t width = model_.width, inner = model_.ffn_width;
        float *x = space_.x.get(), *gate_up = space_.gate_up.get();
        Rows& normed = prepare(tokens_, width, layer.gate_up, [&](int64_t row, float* floats) {
            rms_norm(x + row * width, layer.ffn_norm, floats, model_.width, model_.eps);
            return floats;
        });
        project(layer.gate_up, normed, normed.floats.get(), width, tokens_,
                {gate_up, 2 * inner, layer.gate_up_bias, false});
        Rows& gated = prepare(tokens_, inner, layer.down, [&](int64_t row, float* floats) {
            swiglu(gate_up + row * 2 * inner, floats, model_.ffn_width);
            return floats;
        });
        project(layer.down, gated, gated.floats.get(), inner, tokens_, {x, width, layer.down_bias, true});
    }

    void mix_experts(const Layer& layer) {
        const Experts& experts = layer.experts;
        const int64_t width = model_.width, inner = experts.width, count = tokens_ * experts.per_token;
        float *x = space_.x.get(), *gate_up = space_.gate_up.get(), *results = space_.results.get();
        Rows& shared = space_.shared;
        if (thread_ == 0) shared.shape(width);
        if (thread_ == 0) space_.gathered.shape(width);
        meet(run_.team);
        each(tokens_, [&](int64_t row) {
            float* floats = shared.floats.get() + row * width;
            rms_norm(x + row * width, layer.ffn_norm, floats, model_.width, model_.eps);
            for (int which = 0; which < 2; which++) {
                quantise(floats, model_.width, shared.blocks[which], row);
            }
        });
        project(experts.router, shared, shared.floats.get(), width, tokens_,
                {space_.routed.get(), experts.count, nullptr, false});
        if (thread_ == 0) route(experts);
        meet(run_.team);
        Rows& gathered = space_.gathered;
        each(count, [&](int64_t row) {
            const int64_t source = space_.sources[row];
            memcpy(gathered.floats.get() + row * width, shared.floats.get() + source * width, width * sizeof(float));
            for (int which = 0; which < 2; which++) copy_row(shared.blocks[which], source, gathered.blocks[which], row);
        });
        project_experts(experts, experts.gate_up, gathered, width, {gate_up, 2 * inner, nullptr, false});
        if (thread_ == 0) gathered.shape(inner);
        meet(run_.team);
        each(count, [&](int64_t row) {
            float* floats = gathered.floats.get() + row * inner;
            swiglu(gate_up + row * 2 * inner, floats, experts.width);
            for (int which = 0; which < 2; which++) {
                quantise(floats, experts.width, gathered.blocks[which], row);
            }
        });
        project_experts(experts, experts.down, gathered, inner, {results, width, nullptr, false});
        each(tokens_, [&](int64_t token) {
            for (int64_t column = 0; column < width; column++) {
                float total = 0;
                for (int64_t k = token * experts.per_token; k < (token + 1) * experts.per_token; k++) {
                    total += space_.shares[k] * results[space_.places[k] * width + column];
                }
                x[token * width + column] += total;
            }
        });
    }

    void project_experts(const Experts& experts, const Stack* matrices, const Rows& rows, int64_t ld,
                         const Target& target) {
        Counter& counter = take_counter();
        int64_t item = counter.take(), base = 0;
        for (int32_t expert = 0; expert < experts.count; expert++) {
            const int64_t start = space_.starts[expert], count = space_.starts[expert + 1] - start;
            if (count == 0) continue;
            Target own = target;
            own.out += start * target.ld;
            project(matrices[expert], rows, rows.floats.get(), ld, start, count, own, counter, item, base);
        }
        meet(run_.team);
    }

    // Which experts each token goes to: a softmax over all, the likeliest, of equal ones the lower number first.
    void route(const Experts& experts) {
        const int64_t count = tokens_ * experts.per_token;
        space_.places.resize(count);
        space_.sources.resize(count);
        space_.shares.resize(count);
        space_.starts.assign(experts.count + 1, 0);
        std::vector<int32_t>&order = space_.order, &chosen = space_.chosen, &next = space_.next;
        order.resize(experts.count);
        chosen.resize(count);
        for (int64_t token = 0; token < tokens_; token++) {
            float* logits = space_.routed.get() + token * experts.count;
            const float top = *std::max_element(logits, logits + experts.count);
            float total = 0;
            for (int32_t e = 0; e < experts.count; e++) total += logits[e] = std::exp(logits[e] - top);
            for (int32_t e = 0; e < experts.count; e++) order[e] = e;
            // What is no number counts as the smallest: sorting needs an order, and the rows are lost anyway.
            auto before = [&](int32_t a, int32_t b) {
                const float left = std::isnan(logits[a]) ? -1.0f : logits[a];
                const float right = std::isnan(logits[b]) ? -1.0f : logits[b];
                return left != right ? left > right : a < b;
            };
            std::partial_sort(order.begin(), order.begin() + experts.per_token, order.end(), before);
            float kept = 0;
            for (int32_t k = 0; k < experts.per_token; k++) kept += logits[order[k]] / total;
            for (int32_t k = 0; k < experts.per_token; k++) {
                const int64_t at = token * experts.per_token + k;
                const float share = logits[order[k]] / total;
                chosen[at] = order[k];
                space_.shares[at] = experts.normalise ? share / kept : share;
                space_.starts[order[k] + 1]++;
            }
        }
        for (int32_t e = 0; e < experts.count; e++) space_.starts[e + 1] += space_.starts[e];
        next.assign(space_.starts.begin(), space_.starts.end() - 1);
        for (int64_t at = 0; at < count; at++) {
            const int32_t row = next[chosen[at]]++;
            space_.places[at] = row;
            space_.sources[row] = static_cast<int32_t>(at / experts.per_token);
        }
    }

    void finish() {
        const int64_t width = model_.width, vocabulary = model_.lm_head.rows, wanted = step_.num_logit_rows;
        const float* x = space_.x.get();
        if (step_.num_hidden_rows > 0) {
            each(step_.num_hidden_rows, [&](int64_t row) {
                rms_norm(x + step_.hidden_rows[row] * width, model_.final_norm, step_.hidden + row * width,
                         model_.width, model_.eps);
            });
        }
        if (wanted == 0) return;
        Rows& normed = prepare(wanted, width, model_.lm_head, [&](int64_t row, float* floats) {
            rms_norm(x + step_.logit_rows[row] * width, model_.final_norm, floats, model_.width, model_.eps);
            return floats;
        });
        project(model_.lm_head, normed, normed.floats.get(), width, wanted, {step_.logits, vocabulary, nullptr, false});
        each(wanted, [&](int64_t row) { step_.best[row] = best_of(step_.logits + row * vocabulary, vocabulary); });
    }
};

void reserve(const Run& run) {
    Workspace& space = run.space;
    const Model& model = run.model;
    const int64_t tokens = std::max<int64_t>(run.step.batch.tokens, run.step.num_logit_rows);
    int64_t qkv = 0, mixed = 0, inner = model.ffn_width, scratch = 0, parts = 0, gathered = 0, expert_width = 0, experts = 0;
    for (int32_t index = 0; index < model.num_layers; index++) {
        const Layer& layer = model.layers[index];
        qkv = std::max<int64_t>(qkv, layer.qkv.rows);
        mixed = std::max<int64_t>(mixed, static_cast<int64_t>(layer.heads.queries) * layer.heads.width);
        scratch = std::max(scratch, attention_scratch(run.step.batch, layer.heads));
        parts = std::max(parts, attention_parts(run.step.batch, layer.heads, run.threads));
        if (layer.experts.count == 0) continue;
        gathered = std::max<int64_t>(gathered, tokens * layer.experts.per_token);
        expert_width = std::max<int64_t>(expert_width, layer.experts.width);
        experts = std::max<int64_t>(experts, layer.experts.count);
    }
    const int64_t widest = std::max<int64_t>({model.width, mixed, inner});
    space.x.reserve(tokens * model.width);
    space.qkv.reserve(tokens * qkv);
    space.mixed.reserve(tokens * mixed);
    space.gate_up.reserve(std::max(tokens * 2 * inner, gathered * 2 * expert_width));
    space.shared.reserve(tokens, widest);
    for (Rows& rows : space.own) rows.reserve(PRIVATE_ROWS, widest);
    for (auto& buffer : space.attention) buffer.reserve(scratch);
    space.parts.results = space.part_results.reserve(parts);
    if (gathered == 0) return;
    space.routed.reserve(tokens * experts);
    space.results.reserve(gathered * model.width);
    space.gathered.reserve(gathered, std::max<int64_t>(model.width, expert_width));
    // Here, not in `route`: what fails between two meetings would leave the other threads waiting.
    for (auto* list : {&space.places, &space.sources, &space.chosen}) list->reserve(gathered);
    space.shares.reserve(gathered);
    for (auto* list : {&space.starts, &space.order, &space.next}) list->reserve(experts + 1);
}

}  // namespace

Workspace* new_workspace(int threads) { return new Workspace(threads); }

void free_workspace(Workspace* workspace) { delete workspace; }

void run_step(Team* team, Workspace* workspace, const Model& model, const Step& step) {
    Run run = {team, *workspace, model, step, team_size(team)};
    reserve(run);
    for (Counter& counter : workspace->counters) counter.reset();
    hatchway::run(
        team, [](void* context, int thread) { Hand(*static_cast<Run*>(context), thread).work(); }, &run);
}

}  // namespace hatchway
