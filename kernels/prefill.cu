// Attention of many rows over the paged bf16 cache on tensor cores.
//
// A block takes one head of up to ROWS consecutive rows of one sequence, a warp 16 of them. Keys
// and values pass through shared memory in tiles of TILE positions, two of which alternate: the
// next is on its way while all warps compute on this one. Tiles that no row of the block may see
// are skipped.
//
//   shared memory: [2 stages][keys, values][TILE][D + 8]; the queries, [ROWS][D + 8], are there
//   before them, or behind them for large heads
#include "tensor.cuh"

template <int D, class O>
struct Prefill {
  static constexpr u32 kWarps = D <= 128 ? 8 : 4;
  static constexpr u32 kRows = kWarps * 16;
  static constexpr u32 kTile = D <= 128 ? 64 : 32;
  static constexpr u32 kPitch = D + 8;
  static constexpr u32 kStage = 2 * kTile * kPitch;
  // Queries in registers leave their shared memory to keys and values.
  static constexpr bool kInRegisters = D <= 128;
  static_assert(kRows * kPitch <= 2 * kStage, "the queries find room where keys and values come");
  typedef Queries<D, kInRegisters> Fragments;

  const Attention<bf16, O>& a;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Work work;
  const Seq seq;
  const u32 head = blockIdx.y;
  // Rows of the block, and the position of the first.
  const u32 rows, position;
  bf16* shared;

  __device__ __forceinline__ explicit Prefill(const Attention<bf16, O>& args)
      : a(args),
        work(args.work[blockIdx.x]),
        seq(args.seqs[work.seq]),
        rows(min(kRows, seq.query_start + seq.query_len - work.row)),
        position(seq.context_len + (work.row - seq.query_start)) {
    shared = reinterpret_cast<bf16*>(ptx::dynamic_shared());
  }

  __device__ __forceinline__ void load_queries(Fragments& queries) {
    bf16* to = kInRegisters ? shared : shared + 2 * kStage;
    for (u32 i = threadIdx.x; i < kRows * D / 2; i += kWarps * 32) {
      const u32 row = i / (D / 2), column = i % (D / 2) * 2;
      const float* q = a.qkv + static_cast<u64>(work.row + row) * a.qkv_width +
                       static_cast<u64>(head) * D + column;
      *reinterpret_cast<u32*>(to + row * kPitch + column) =
          row < rows ? ptx::pack_bf16(q[0], q[1]) : 0;
    }
    __syncthreads();
    queries.take(to + warp * 16 * kPitch, kPitch);
    // Keys and values overwrite them.
    if (kInRegisters) __syncthreads();
  }

  // Positions before `begin` and from `end` on are zeros: their blocks may hold anything.
  __device__ __forceinline__ void fetch(u32 start, u32 begin, u32 end, u32 stage) {
    const u32* table = a.block_table + seq.block_table_start;
    const u64 kv_head = head / (a.heads / a.kv_heads);
    bf16* keys = shared + stage * kStage;
    bf16* values = keys + kTile * kPitch;
#pragma unroll 2
    for (u32 i = threadIdx.x; i < kTile * D / 8; i += kWarps * 32) {
      const u32 row = i / (D / 8), column = i % (D / 8) * 8, at = start + row;
      const u32 bytes = at >= begin && at < end ? 16 : 0;
      const u32 block = table[min(at, end - 1) / a.block_size];
      const bf16* from = a.kv + block * a.block_stride + a.k_offset +
                         (kv_head * a.block_size + at % a.block_size) * D + column;
      ptx::copy_async_16(keys + row * kPitch + column, from, bytes);
      ptx::copy_async_16(values + row * kPitch + column, from + (a.v_offset - a.k_offset), bytes);
    }
    ptx::copy_async_commit();
  }

  // Scales the scores and hides what a row may not see.
  __device__ __forceinline__ void shape(float (&scores)[kTile / 8][4], u32 start) {
    const u32 first = position + warp * 16 + lane / 4;
#pragma unroll
    for (u32 n = 0; n < kTile / 8; n++) {
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        const u32 own = first + j / 2 * 8, other = start + n * 8 + lane % 4 * 2 + j % 2;
        const bool seen = other <= own && (a.window == 0 || own - other < a.window);
        scores[n][j] = seen ? shaped(scores[n][j], a.scale, a.softcap) : -infinity();
      }
    }
  }

  __device__ __forceinline__ void run() {
    ptx::take_turn();
    Fragments queries;
    load_queries(queries);
    const u32 end = position + rows;
    const u32 begin = a.window != 0 && position + 1 > a.window ? position + 1 - a.window : 0;
    Running<D> running;
    running.clear();
    u32 start = begin / kTile * kTile, stage = 0;
    fetch(start, begin, end, 0);
    for (; start < end; start += kTile, stage ^= 1) {
      if (start + kTile < end) {
        fetch(start + kTile, begin, end, stage ^ 1);
        ptx::copy_async_wait<1>();
      } else {
        ptx::copy_async_wait<0>();
      }
      __syncthreads();
      const bf16* keys = shared + stage * kStage;
      float scores[kTile / 8][4] = {};
      score(scores, queries, keys, kPitch);
      shape(scores, start);
      running.weigh(scores);
      running.mix(scores, keys + kTile * kPitch, kPitch);
      // The stage is written again by the next fetch.
      __syncthreads();
    }
    running.write(a, head, work.row + warp * 16 + lane / 4, work.row + rows);
  }
};

#define INSTANCE(D, O)                                                                      \
  extern "C" __global__ void __launch_bounds__(D <= 128 ? 256 : 128, 1)                     \
      prefill_attention_##D##_##O(Attention<bf16, O> a) {                                   \
    Prefill<D, O>(a).run();                                                                 \
  }
INSTANCE(64, f32)
INSTANCE(64, bf16)
INSTANCE(80, f32)
INSTANCE(80, bf16)
INSTANCE(96, f32)
INSTANCE(96, bf16)
INSTANCE(128, f32)
INSTANCE(128, bf16)
INSTANCE(192, f32)
INSTANCE(192, bf16)
INSTANCE(256, f32)
INSTANCE(256, bf16)
