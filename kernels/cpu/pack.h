// Where the codes of a matrix come from: a `Packed` of kernels/packed.py.
#pragma once

#include "cpu.h"

namespace hatchway {

enum Layout : int32_t { INT8 = 0, UINT8 = 1, INT4 = 2, INT3 = 3 };

struct Source {
    int32_t layout;
    int32_t columns;
    int32_t group;  // columns that share a scale
    int32_t scale_bytes;
    int64_t row_bytes;
    const void* data;
    const void* scales;  // [rows, columns / group]
    const void* minima;  // like `scales`, or null
};

// Fills one of the tiles that begin at `out`; the `data` of `matrix` is not looked at. Scales are taken as they are.
void pack_tile(const Source& source, const Matrix& matrix, uint8_t* out, int64_t tile);

}  // namespace hatchway
