// What Python calls; the other exports stand beside what they export. Structures are compared by size after loading.

#include <exception>
#include <memory>
#include <vector>

#include "pack.h"
#include "step.h"

#ifndef HATCHWAY_BUILD
#define HATCHWAY_BUILD "unnamed"
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace hatchway;

EXPORT const char* hatchway_build() { return HATCHWAY_BUILD; }

EXPORT int64_t hatchway_size(int32_t what) {
    const int64_t sizes[] = {sizeof(Matrix), sizeof(Source), sizeof(Stack), sizeof(Experts), sizeof(Layer),
                             sizeof(Model),  sizeof(Step),   sizeof(KV),    sizeof(Heads),   sizeof(Batch)};
    return what >= 0 && what < 10 ? sizes[what] : -1;
}

EXPORT void* hatchway_start(int32_t threads) { return start_team(threads); }

EXPORT void hatchway_end(void* team) { end_team(static_cast<Team*>(team)); }

EXPORT void* hatchway_new_workspace(int32_t threads) { return new_workspace(threads); }

EXPORT void hatchway_free_workspace(void* workspace) { free_workspace(static_cast<Workspace*>(workspace)); }

EXPORT void hatchway_set_sgemm(void* sgemm) { set_sgemm(reinterpret_cast<Sgemm>(sgemm)); }

EXPORT int64_t hatchway_tiles_bytes(const Matrix* matrix) { return tile_bytes(*matrix) * num_tiles(*matrix); }

// -> 0, or 1 where memory ran out.
EXPORT int32_t hatchway_pack(void* team, const Source* source, const Matrix* matrix, uint8_t* out) {
    struct Packing {
        const Source& source;
        const Matrix& matrix;
        uint8_t* out;
        Counter tiles;
        std::atomic<bool> failed{false};
    } packing = {*source, *matrix, out, {}, {}};
    run(
        static_cast<Team*>(team),
        [](void* context, int) {
            Packing& p = *static_cast<Packing*>(context);
            try {
                for (int64_t tile; (tile = p.tiles.take()) < num_tiles(p.matrix);) {
                    pack_tile(p.source, p.matrix, p.out, tile);
                }
            } catch (const std::exception&) {
                p.failed = true;
            }
        },
        &packing);
    return packing.failed;
}

EXPORT void hatchway_expand(const Matrix* matrix, int64_t row, float* out) { expand_row(*matrix, row, out); }

// x [rows, columns] -> out [rows, matrix rows], `out_ld` floats from row to row. variant below 0, or one that the matrix has
// not: the chosen one.
// -> 0, or 1 where memory ran out.
EXPORT int32_t hatchway_product(void* team, const Matrix* matrix, const float* x, int64_t rows, float* out,
                                int64_t out_ld, const float* bias, int32_t variant) {
    struct Product {
        Team* team;
        const Matrix& matrix;
        Activations x;
        Target target;
        Variant variant;
        Counter rows;
        Counter items;
    };
    try {
        const bool asked = variant >= 0 && has_variant(*matrix, static_cast<Variant>(variant));
        const int64_t blocks = matrix->kind == FP32 ? 0 : num_blocks(*matrix);
        std::vector<int16_t> q(rows * blocks * matrix->span + 32);
        std::vector<float> scale(rows * blocks), sum(rows * blocks);
        Product product = {static_cast<Team*>(team),
                           *matrix,
                           {x, matrix->columns,
                            {reinterpret_cast<int16_t*>((reinterpret_cast<uintptr_t>(q.data()) + 63) / 64 * 64),
                             scale.data(), sum.data(), matrix->span, static_cast<int32_t>(blocks)},
                            rows},
                           {out, out_ld, bias, false},
                           asked ? static_cast<Variant>(variant) : variant_of(*matrix, rows),
                           {},
                           {}};
        run(
            product.team,
            [](void* context, int) {
                Product& p = *static_cast<Product*>(context);
                if (p.matrix.kind != FP32) {
                    for (int64_t row; (row = p.rows.take()) < p.x.count;) {
                        quantise(p.x.rows + row * p.x.ld, p.matrix.columns, p.x.blocks, row);
                    }
                    meet(p.team);
                }
                const int threads = team_size(p.team);
                const int64_t items = product_items(p.matrix, p.x.count, p.variant, threads);
                for (int64_t item; (item = p.items.take()) < items;) {
                    multiply(p.matrix, p.x, p.target, p.variant, item, threads);
                }
            },
            &product);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

EXPORT void hatchway_rms_norm(const float* x, const float* weight, float* out, int64_t rows, int32_t width,
                              float eps) {
    for (int64_t row = 0; row < rows; row++) rms_norm(x + row * width, weight, out + row * width, width, eps);
}

EXPORT void hatchway_swiglu(const float* gate_up, float* out, int64_t rows, int32_t width) {
    for (int64_t row = 0; row < rows; row++) swiglu(gate_up + row * 2 * width, out + row * width, width);
}

// -> 0, or 1 where memory ran out.
EXPORT int32_t hatchway_step(void* team, void* workspace, const Model* model, const Step* step) {
    try {
        run_step(static_cast<Team*>(team), static_cast<Workspace*>(workspace), *model, *step);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}
