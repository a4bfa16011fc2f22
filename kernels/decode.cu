// Attention of single rows over the paged bf16 cache on tensor cores, made to read keys and
// values at the memory's speed.
//
// The query heads that share a key-value head are the 16 rows of a tensor-core product, so that
// keys and values are read once for all of them. A block takes one piece of work (a row and a
// range of positions) and one group of heads. Each of its warps goes through every WARPS-th tile
// of 16 positions on its own, with two tiles of shared memory: while it computes on one, the
// other is on its way. At the end the warps' results are merged; a piece that is not the whole
// row leaves an unscaled partial result, which `attention_merge` puts together.
//
//   shared memory, by warp: [2 stages][keys, values][16 positions][D + 8]; then [16 queries][D + 8]
#include "tensor.cuh"

#define TILE 16

template <int D, class O>
struct Decode {
  static constexpr u32 kWarps = D <= 128 ? 4 : 2;
  static constexpr u32 kPitch = D + 8;  // rows fall on different banks
  static constexpr u32 kStage = 2 * TILE * kPitch;
  typedef Queries<D, D <= 128> Fragments;

  const Attention<bf16, O>& a;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  bf16 *ring, *query_rows;

  __device__ __forceinline__ explicit Decode(const Attention<bf16, O>& args) : a(args) {
    bf16* shared = reinterpret_cast<bf16*>(ptx::dynamic_shared());
    ring = shared + warp * 2 * kStage;
    query_rows = shared + kWarps * 2 * kStage;
  }

  // Begins the copy of a tile's keys and values. Positions before `begin` and from `end` on are
  // zeros: their blocks may hold anything.
  __device__ __forceinline__ void fetch(const u32* table, u32 kv_head, u32 start, u32 begin,
                                        u32 end, u32 stage) {
    // Each lane of the first 16 finds the place of one position, where it is wanted.
    const u32 position = start + lane % TILE;
    const bool here = position >= begin && position < end;
    const u32 block = here ? table[position / a.block_size] : 0;
    const u32 offset = here ? position % a.block_size : 0;
    bf16* keys = ring + stage * kStage;
    bf16* values = keys + TILE * kPitch;
    constexpr u32 kPieces = TILE * D / 8;
#pragma unroll
    for (u32 i = 0; i < (kPieces + 31) / 32; i++) {
      const u32 piece = i * 32 + lane, row = piece / (D / 8) % TILE, column = piece % (D / 8) * 8;
      const u32 from_block = __shfl_sync(~0u, block, row);
      const u32 from_offset = __shfl_sync(~0u, offset, row);
      if (kPieces % 32 != 0 && piece >= kPieces) continue;
      const bf16* from = a.kv + from_block * a.block_stride + a.k_offset +
                         (static_cast<u64>(kv_head) * a.block_size + from_offset) * D + column;
      const u32 bytes = start + row >= begin && start + row < end ? 16 : 0;
      ptx::copy_async_16(keys + row * kPitch + column, from, bytes);
      ptx::copy_async_16(values + row * kPitch + column, from + (a.v_offset - a.k_offset), bytes);
    }
    ptx::copy_async_commit();
  }

  // Writes `count` queries of a row as 16 rows of shared memory.
  __device__ __forceinline__ void put_queries(u32 row, u32 head, u32 count) {
    const float* from = a.qkv + static_cast<u64>(row) * a.qkv_width + static_cast<u64>(head) * D;
    for (u32 i = threadIdx.x; i < 16 * D / 2; i += kWarps * 32) {
      const u32 r = i / (D / 2), column = i % (D / 2) * 2;
      const float* q = from + r * D + column;
      *reinterpret_cast<u32*>(query_rows + r * kPitch + column) =
          r < count ? ptx::pack_bf16(q[0], q[1]) : 0;
    }
  }

  // This warp's share of a range of positions.
  __device__ __forceinline__ void attend(Running<D>& run, const Fragments& queries,
                                         const u32* table, u32 kv_head, u32 begin, u32 end) {
    run.clear();
    const u32 base = begin / TILE * TILE, tiles = (end - base + TILE - 1) / TILE;
    if (warp < tiles) fetch(table, kv_head, base + warp * TILE, begin, end, 0);
    u32 stage = 0;
    for (u32 tile = warp; tile < tiles; tile += kWarps, stage ^= 1) {
      const u32 start = base + tile * TILE;
      if (tile + kWarps < tiles) {
        fetch(table, kv_head, start + kWarps * TILE, begin, end, stage ^ 1);
        ptx::copy_async_wait<1>();
      } else {
        ptx::copy_async_wait<0>();
      }
      __syncwarp();
      const bf16* keys = ring + stage * kStage;
      float scores[TILE / 8][4] = {};
      score(scores, queries, keys, kPitch);
#pragma unroll
      for (u32 n = 0; n < TILE / 8; n++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
          const u32 position = start + n * 8 + lane % 4 * 2 + j % 2;
          const bool seen = position >= begin && position < end;
          scores[n][j] = seen ? shaped(scores[n][j], a.scale, a.softcap) : -infinity();
        }
      }
      run.weigh(scores);
      run.mix(scores, keys + TILE * kPitch, kPitch);
      // The stage is written again by the next fetch.
      __syncwarp();
    }
  }

  // Leaves this warp's results in shared memory: by head [D] of mixed values, maximum, sum.
  __device__ __forceinline__ void leave(Running<D>& run, float* results) {
    const u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
      const float sum = row_sum(run.sum[r]);
      float* to = results + (warp * 16 + g + r * 8) * (D + 2);
#pragma unroll
      for (u32 i = 0; i < D / 8; i++) {
        to[i * 8 + t * 2] = run.mixed[i][2 * r];
        to[i * 8 + t * 2 + 1] = run.mixed[i][2 * r + 1];
      }
      if (t == 0) {
        to[D] = run.highest[r];
        to[D + 1] = sum;
      }
    }
  }

  // Puts the warps' results together, for `count` heads.
  __device__ __forceinline__ void merge(const float* results, const Work& work, u32 head,
                                        u32 count) {
    for (u32 i = threadIdx.x; i < count * D; i += kWarps * 32) {
      const u32 h = i / D, d = i % D;
      const bool whole = work.partial == NONE;
      const bool sink = whole && a.sinks != nullptr;
      const float sink_score = sink ? a.sinks[head + h] * LOG2E : -infinity();
      float top = sink_score;
#pragma unroll
      for (u32 w = 0; w < kWarps; w++) top = fmaxf(top, results[(w * 16 + h) * (D + 2) + D]);
      float sum = sink ? ptx::exp2_fast(sink_score - top) : 0.0f, value = 0.0f;
#pragma unroll
      for (u32 w = 0; w < kWarps; w++) {
        const float* from = results + (w * 16 + h) * (D + 2);
        const float share = ptx::exp2_fast(from[D] - top);
        sum += share * from[D + 1];
        value += share * from[d];
      }
      if (whole) {
        store(a.out + (static_cast<u64>(work.row) * a.heads + head + h) * D + d, value / sum);
        continue;
      }
      float* to = a.partial + (static_cast<u64>(work.partial) * a.heads + head + h) * (D + 2);
      to[d] = value;
      if (d == 0) {
        to[D] = top;
        to[D + 1] = sum;
      }
    }
  }

  __device__ __forceinline__ void run() {
    const u32 group = a.heads / a.kv_heads, tiles = (group + 15) / 16;
    const u32 kv_head = blockIdx.y / tiles, tile = blockIdx.y % tiles;
    const u32 head = kv_head * group + tile * 16, count = min(16u, group - tile * 16);
    float* results = reinterpret_cast<float*>(ptx::dynamic_shared());
    const u32 pieces = *a.num_work;
    for (u32 piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
      const Work work = a.work[piece];
      const u32* table = a.block_table + a.seqs[work.seq].block_table_start;
      put_queries(work.row, head, count);
      __syncthreads();
      Fragments queries;
      queries.take(query_rows, kPitch);
      Running<D> running;
      attend(running, queries, table, kv_head, work.begin, work.end);
      // The rings become the place of the results.
      __syncthreads();
      leave(running, results);
      __syncthreads();
      merge(results, work, head, count);
      __syncthreads();
    }
  }
};

#define INSTANCE(D, O)                                                                      \
  extern "C" __global__ void __launch_bounds__(D <= 128 ? 128 : 64)                         \
      decode_attention_##D##_##O(Attention<bf16, O> a) {                                    \
    Decode<D, O>(a).run();                                                                  \
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
#undef INSTANCE

// Puts the partial results of a row together: `begin` .. `end` of a piece of work are its partials.
template <class O>
__device__ __forceinline__ void attention_merge(const Attention<bf16, O>& a) {
  const u32 head = blockIdx.y, pieces = *a.num_work;
  const u32 stride = a.head_dim + 2;
  for (u32 piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const Work work = a.work[piece];
    const float* first = a.partial + (static_cast<u64>(work.begin) * a.heads + head) * stride;
    const u64 step = static_cast<u64>(a.heads) * stride;
    const u32 count = work.end - work.begin;
    const bool sink = a.sinks != nullptr;
    const float sink_score = sink ? a.sinks[head] * LOG2E : -infinity();
    float top = sink_score;
    for (u32 i = 0; i < count; i++) top = fmaxf(top, first[i * step + a.head_dim]);
    for (u32 d = threadIdx.x; d < a.head_dim; d += blockDim.x) {
      float sum = sink ? ptx::exp2_fast(sink_score - top) : 0.0f, value = 0.0f;
      for (u32 i = 0; i < count; i++) {
        const float share = ptx::exp2_fast(first[i * step + a.head_dim] - top);
        sum += share * first[i * step + a.head_dim + 1];
        value += share * first[i * step + d];
      }
      store(a.out + (static_cast<u64>(work.row) * a.heads + head) * a.head_dim + d, value / sum);
    }
  }
}

extern "C" __global__ void __launch_bounds__(128) attention_merge_f32(Attention<bf16, f32> a) {
  attention_merge(a);
}
extern "C" __global__ void __launch_bounds__(128) attention_merge_bf16(Attention<bf16, bf16> a) {
  attention_merge(a);
}
