// Arguments that are passed as one struct, as README.md lays them out.
#ifndef VRUST_ARGS_CUH
#define VRUST_ARGS_CUH
#include "types.cuh"

// One sequence's rows of a step.
struct Seq {
  u32 query_start, query_len, context_len, block_table_start, num_blocks, unused[3];
};

template <class T>
struct RopeWrite {
  float* qkv;
  T* kv;
  const u32* positions;
  const u32* slots;
  const float* q_norm;
  const float* k_norm;
  const float* rope;
  u64 block_stride, k_offset, v_offset;
  u32 heads, kv_heads, head_dim, rotary_dim, block_size;
  float eps;
};

// A piece of attention that one block computes.
struct Work {
  u32 seq;      // index into the sequences
  u32 row;      // its first row
  u32 begin;    // first position of the cache
  u32 end;      // past the last one
  u32 partial;  // where the partial result goes; NONE: the result is whole
  u32 next;     // index of the piece that the same block takes after it; NONE: it was the last
  u32 unused[2];
};

template <class T, class O>
struct Attention {
  O* out;
  const float* qkv;
  const T* kv;
  const u32* block_table;
  const Seq* seqs;
  const u32* row_seq;
  const float* sinks;
  const Work* work;
  const u32* num_work;
  float* partial;
  u64 block_stride, k_offset, v_offset;
  u32 heads, kv_heads, head_dim, block_size, qkv_width, window;
  float scale, softcap;
};

// How the token of one row is chosen.
struct SampleRow {
  u64 seed;
  u32 position;  // of the new token in its sequence
  float temperature;  // 0: the most likely
  u32 top_k;          // 0: off
  float top_p;        // 1: off
  float ln_min_p;     // -infinity: off
  u32 edits, num_edits;  // a range of all edits
  u32 seen, num_seen;    // a range of all tokens seen
  float repetition, frequency, presence;
  u32 allowed;  // which mask; NONE: every token may be chosen
  u32 unused;
};

// Added to a token's logit; -infinity hides it.
struct Edit {
  u32 token;
  float add;
};

// A token of the prompt or the output, with its occurrences in the output.
struct Seen {
  u32 token, count;
};

#endif
