// A model and a step of it, as Python describes them. Everything pointed to belongs to Python and outlives the call.
#pragma once

#include "cpu.h"

namespace hatchway {

// Matrices one below the other.
struct Stack {
    const Matrix* parts;
    int32_t count;
    int32_t rows;  // of all parts
};

struct Experts {
    Stack router;  // fp32 [E, D]
    const Stack* gate_up;
    const Stack* down;
    int32_t count;      // E; 0: the layer has one feed-forward network
    int32_t per_token;
    int32_t width;      // F of one expert
    int32_t normalise;
};

struct Layer {
    const float* attention_norm;
    const float* ffn_norm;
    Stack qkv;
    Stack attention_out;
    Stack gate_up;
    Stack down;
    const float* qkv_bias;  // biases are null where the model has none
    const float* attention_out_bias;
    const float* gate_up_bias;
    const float* down_bias;
    Heads heads;
    Experts experts;
};

struct Model {
    const Layer* layers;
    int32_t num_layers;
    int32_t width;      // D
    int32_t ffn_width;  // F of the layers without experts; 0 where all have them
    float eps;
    Stack embedding;  // [V, D]
    Stack lm_head;    // [V, D]
    const float* final_norm;
};

struct Step {
    Batch batch;
    const KV* memory;  // of each layer
    const int32_t* logit_rows;
    const int32_t* hidden_rows;
    int32_t num_logit_rows;
    int32_t num_hidden_rows;
    float* logits;  // [logit rows, V]
    float* hidden;  // [hidden rows, D], after the final norm
    int32_t* best;  // [logit rows]: the largest logit's token, the lowest of equal ones; -1: not all are finite
};

struct Workspace;

Workspace* new_workspace(int threads);
void free_workspace(Workspace* workspace);
void run_step(Team* team, Workspace* workspace, const Model& model, const Step& step);

}  // namespace hatchway
