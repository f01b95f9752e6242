// Matrices in tiles: from the layouts of kernels/packed.py, and back row by row.

#include "pack.h"

#include <vector>

namespace hatchway {

namespace {

// The codes of a row as numbers, from a `Packed.data` of kernels/packed.py.
void read_codes(const Source& source, int64_t row, int16_t* out) {
    const uint8_t* data = static_cast<const uint8_t*>(source.data) + row * source.row_bytes;
    const int tile = source.group;
    for (int64_t start = 0; start < source.columns; start += tile) {
        int16_t* codes = out + start;
        switch (source.layout) {
            case INT8:
                for (int i = 0; i < tile; i++) codes[i] = static_cast<int8_t>(data[start + i]);
                break;
            case UINT8:  // stored as a signed byte, `offset` makes up for it
                for (int i = 0; i < tile; i++) codes[i] = static_cast<int16_t>(data[start + i] - 128);
                break;
            case INT4: {
                const uint8_t* bytes = data + start / 2;
                for (int i = 0; i < tile / 2; i++) {
                    codes[i] = bytes[i] & 15;
                    codes[i + tile / 2] = bytes[i] >> 4;
                }
                break;
            }
            case INT3: {
                const uint8_t* two = data + start * 3 / 8;
                const uint8_t* one = two + tile / 4;
                for (int i = 0; i < tile; i++) {
                    const int low = two[i % (tile / 4)] >> (2 * (i / (tile / 4))) & 3;
                    codes[i] = static_cast<int16_t>(low | (one[i % (tile / 8)] >> (i / (tile / 8)) & 1) << 2);
                }
                break;
            }
        }
    }
}

}  // namespace

int64_t block_bytes(const Matrix& matrix) {
    const int64_t codes = TILE * matrix.span * (matrix.kind == CODES4 ? 4 : 8) / 8;
    return codes + static_cast<int64_t>(TILE) * matrix.scale_bytes * (1 + matrix.has_minimum);
}

int64_t tile_bytes(const Matrix& matrix) { return num_blocks(matrix) * block_bytes(matrix); }

void pack_tile(const Source& source, const Matrix& matrix, uint8_t* out, int64_t tile) {
    const int64_t blocks = num_blocks(matrix), groups = source.columns / source.group, bytes = block_bytes(matrix);
    const int span = matrix.span, half_codes = 8 * span * (matrix.kind == CODES4 ? 4 : 8) / 8;
    std::vector<int16_t> row_codes(blocks * span);
    out += tile * tile_bytes(matrix);
    memset(out, 0, tile_bytes(matrix));
    for (int64_t row = tile * TILE; row < (tile + 1) * TILE && row < matrix.rows; row++) {
        read_codes(source, row, row_codes.data());
        const int r = row % 8;
        for (int64_t b = 0; b < blocks; b++) {
            const int16_t* codes = row_codes.data() + b * span;
            uint8_t* block = out + b * bytes;
            uint8_t* eight = block + (row % TILE / 8) * half_codes;
            for (int v = 0; v < span / 8; v++, codes += 8) {
                if (matrix.kind == CODES4) {
                    for (int p = 0; p < 2; p++) {
                        const uint16_t word = static_cast<uint16_t>(codes[p] | codes[p + 2] << 4 | codes[p + 4] << 8 |
                                                                    codes[p + 6] << 12);
                        memcpy(eight + 2 * (16 * v + 2 * r + p), &word, 2);
                    }
                } else {
                    for (int k = 0; k < 8; k++) {
                        eight[16 * (4 * v + k / 2) + 2 * r + k % 2] = static_cast<uint8_t>(codes[k]);
                    }
                }
            }
            const int64_t group = row * groups + b * span / source.group;
            uint8_t* scales = block + 2 * half_codes;
            for (int which = 0; which <= matrix.has_minimum; which++) {
                const auto* from = static_cast<const uint8_t*>(which ? source.minima : source.scales);
                memcpy(scales + (which * TILE + row % TILE) * matrix.scale_bytes, from + group * source.scale_bytes,
                       source.scale_bytes);
            }
        }
    }
}

void read_scales(const Matrix& matrix, const uint8_t* block, float* scales, float* lows) {
    const uint8_t* at = block + TILE * matrix.span * (matrix.kind == CODES4 ? 4 : 8) / 8;
    for (int i = 0; i < TILE; i += 8) {
        const bool wide = matrix.scale_bytes == 4;
        const v8f scale = wide ? load<v8f>(at + 4 * i) : load_half(reinterpret_cast<const half*>(at + 2 * i));
        v8f low = scale * splat(matrix.offset);
        if (matrix.has_minimum) {
            const uint8_t* minima = at + TILE * matrix.scale_bytes;
            low += wide ? load<v8f>(minima + 4 * i) : load_half(reinterpret_cast<const half*>(minima + 2 * i));
        }
        store(scales + i, scale);
        store(lows + i, low);
    }
}

void expand_row(const Matrix& matrix, int64_t row, float* out) {
    if (matrix.kind == FP32) {
        memcpy(out, static_cast<const float*>(matrix.data) + row * matrix.columns, 4ll * matrix.columns);
        return;
    }
    const uint8_t* tile = static_cast<const uint8_t*>(matrix.data) + row / TILE * tile_bytes(matrix);
    const int span = matrix.span, half_codes = 8 * span * (matrix.kind == CODES4 ? 4 : 8) / 8;
    const int r = row % 8;
    for (int64_t b = 0; b < num_blocks(matrix); b++) {
        const uint8_t* block = tile + b * block_bytes(matrix);
        const uint8_t* eight = block + (row % TILE / 8) * half_codes;
        float scales[TILE], lows[TILE];
        read_scales(matrix, block, scales, lows);
        for (int k = 0; k < span && b * span + k < matrix.columns; k++) {
            const int j = k / 2, p = k % 2;
            int code;
            if (matrix.kind == CODES4) {
                code = eight[2 * (16 * (j / 4) + 2 * r + p) + j % 4 / 2] >> (4 * (j % 2)) & 15;
            } else {
                code = static_cast<int8_t>(eight[16 * j + 2 * r + p]);
            }
            out[b * span + k] = static_cast<float>(code) * scales[row % TILE] + lows[row % TILE];
        }
    }
}

}  // namespace hatchway
