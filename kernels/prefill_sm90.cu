// Attention of many rows over the paged bf16 cache for Hopper: keys and values come by the copy
// engine, products are the warpgroup's.
//
// A block takes one head of up to ROWS consecutive rows of one sequence. Its first warpgroup
// gives most of its registers away; one warp of it fetches tiles of TILE positions. Each of the
// others takes 64 rows; while it weighs the scores of one tile, its tensor core mixes the values
// of the one before.
//
//   producer   K0 V0 K1 V1 . K2 . V2 ..       two stages each of keys and values; a stage has a
//                 \  \  \                     barrier for `has come` and one for `is free`
//   consumer      S0 .. S1,O0 .. S2,O1 ..     S scores, O values mixed, .. softmax
//
//   shared memory: [2 warpgroups][panels][64][W] queries; [2][panels][TILE][W] keys, as much of
//   values; 8 barriers. A panel holds W elements of each row, swizzled as wide as its rows.
//
// One box of the tensor map, [8 to 128 positions of one block and head][W], is one panel's part:
// a head's rows lie one after the other within a block, so rows of 8 stay in the swizzle's pattern
// whatever block they come from. What no row of the block sees is not fetched, or set to zero.
#include "tensor.cuh"

#define STAGES 2
#define ROWS 128

template <int D, class O>
struct Prefill {
  static constexpr u32 kTile = D <= 128 ? 128 : 64;
  static constexpr u32 kPanel = D % 64 == 0 ? 64 : D % 32 == 0 ? 32 : 16;
  static constexpr u32 kPanels = D / kPanel;
  // In bytes.
  static constexpr u32 kRow = 2 * kPanel;
  static constexpr u32 kQueries = 64 * D * 2;
  static constexpr u32 kStage = kTile * D * 2;

  const Attention<bf16, O>& a;
  const TensorMap& map;
  const Work work;
  const Seq seq;
  const u32 head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
  // Rows of the block, the position of the first, and the positions that they see.
  const u32 rows, position, begin, end;
  // The first position fetched, and the number of tiles.
  const u32 first, tiles;
  u8 *queries, *keys, *values;
  u64 *keys_come, *keys_free, *values_come, *values_free;

  __device__ __forceinline__ Prefill(const Attention<bf16, O>& args, const TensorMap& layer)
      : a(args),
        map(layer),
        work(args.work[blockIdx.x]),
        seq(args.seqs[work.seq]),
        rows(min(static_cast<u32>(ROWS), seq.query_start + seq.query_len - work.row)),
        position(seq.context_len + (work.row - seq.query_start)),
        begin(a.window != 0 && position + 1 > a.window ? position + 1 - a.window : 0),
        end(position + rows),
        first(begin / kTile * kTile),
        tiles((end - first + kTile - 1) / kTile) {
    queries = ptx::dynamic_shared();
    keys = queries + 2 * kQueries;
    values = keys + STAGES * kStage;
    keys_come = reinterpret_cast<u64*>(values + STAGES * kStage);
    keys_free = keys_come + STAGES;
    values_come = keys_free + STAGES;
    values_free = values_come + STAGES;
  }

  __device__ __forceinline__ void set_up_barriers() {
    if (threadIdx.x == 0) {
      // One arrival of each warp that reads.
      const u32 readers = rows > 64 ? 8 : 4;
      for (u32 i = 0; i < STAGES; i++) {
        ptx::barrier_init(keys_come + i, 1);
        ptx::barrier_init(keys_free + i, readers);
        ptx::barrier_init(values_come + i, 1);
        ptx::barrier_init(values_free + i, readers);
      }
      ptx::barrier_init_fence();
    }
    __syncthreads();
  }

  // One warp. A lane fetches the part of a tile that lies in one box.
  __device__ __forceinline__ void produce() {
    const u32 box = min(kTile, a.block_size & (0u - a.block_size));
    const u32 kv_head = head / (a.heads / a.kv_heads);
    const u32* table = a.block_table + seq.block_table_start;
    for (u32 tile = 0; tile < tiles; tile++) {
      const u32 from = lane * box, at = first + tile * kTile + from;
      const bool wanted = from < kTile && at < end && at + box > begin;
      const u32 block = wanted ? table[at / a.block_size] : 0;
      const u32 bytes = __popc(__ballot_sync(~0u, wanted)) * box * D * 2;
      const u32 stage = tile % STAGES, used = tile / STAGES % 2;
      const u32 row = kv_head * a.block_size + at % a.block_size;
      const u32 to = stage * kStage + from * kRow;
      ptx::barrier_wait(keys_free + stage, used ^ 1);
      fetch(keys + to, row, block, wanted, bytes, keys_come + stage);
      ptx::barrier_wait(values_free + stage, used ^ 1);
      fetch(values + to, a.kv_heads * a.block_size + row, block, wanted, bytes,
            values_come + stage);
    }
  }

  __device__ __forceinline__ void fetch(u8* to, u32 row, u32 block, bool wanted, u32 bytes,
                                        u64* barrier) {
    if (lane == 0) ptx::barrier_expect(barrier, bytes);
    __syncwarp();
    if (!wanted) return;
#pragma unroll
    for (u32 i = 0; i < kPanels; i++) {
      ptx::copy_box(to + i * kTile * kRow, &map, i * kPanel, row, block, barrier);
    }
  }

  // Rounds 64 rows, and leaves them where `wgmma` reads them.
  __device__ __forceinline__ void load_queries(u8* to, u32 group) {
    for (u32 i = threadIdx.x % 128; i < 64 * D / 8; i += 128) {
      const u32 row = i / (D / 8), column = i % (D / 8) * 8;
      uint4 packed = make_uint4(0, 0, 0, 0);
      if (group * 64 + row < rows) {
        const float* q = a.qkv + static_cast<u64>(work.row + group * 64 + row) * a.qkv_width +
                         static_cast<u64>(head) * D + column;
        const float4 low = load4(q), high = load4(q + 4);
        packed = make_uint4(ptx::pack_bf16(low.x, low.y), ptx::pack_bf16(low.z, low.w),
                            ptx::pack_bf16(high.x, high.y), ptx::pack_bf16(high.z, high.w));
      }
      u8* panel = to + column / kPanel * 64 * kRow;
      *reinterpret_cast<uint4*>(panel + swizzled<kRow>(row * kRow + column % kPanel * 2)) = packed;
    }
    ptx::async_fence();
    ptx::sync_some(1 + group, 128);
  }

  // scores = queries times a tile's keys, under way.
  __device__ __forceinline__ void score(float (&scores)[kTile / 8][4], const u8* own, u32 tile) {
    const u8* from = keys + tile % STAGES * kStage;
    ptx::pin(scores);
    ptx::wgmma_fence();
#pragma unroll
    for (u32 d = 0; d < D; d += 16) {
      const u32 panel = d / kPanel, inside = d % kPanel * 2;
      ptx::wgmma(scores, matrix<kRow>(own + panel * 64 * kRow + inside, 0),
                 matrix<kRow>(from + panel * kTile * kRow + inside, 0), d != 0);
    }
    ptx::wgmma_commit();
  }

  // mixed += weights times a tile's values, under way.
  __device__ __forceinline__ void mix(Running<D>& run, u32 (&weights)[kTile / 16][4], u32 tile) {
    const u8* from = values + tile % STAGES * kStage;
    ptx::pin(run.mixed);
    ptx::pin(weights);
    ptx::wgmma_fence();
#pragma unroll
    for (u32 i = 0; i < kTile / 16; i++) {
      const u64 rows_of_tile = matrix<kRow>(from + i * 16 * kRow, kTile * kRow);
      ptx::wgmma_transposed(run.mixed, weights[i], rows_of_tile);
    }
    ptx::wgmma_commit();
  }

  // Zeros for values that no row sees: a weight of zero does not undo a NaN.
  __device__ __forceinline__ void clear_unseen(u32 group, u32 tile) {
    const u32 start = first + tile * kTile;
    const u32 before = begin > start ? begin - start : 0, after = min(end - start, kTile);
    if (before == 0 && after == kTile) return;
    u8* to = values + tile % STAGES * kStage;
    constexpr u32 kPieces = kRow / 16;
    for (u32 i = threadIdx.x % 128; i < kTile * kPieces; i += 128) {
      if (i / kPieces >= before && i / kPieces < after) continue;
#pragma unroll
      for (u32 panel = 0; panel < kPanels; panel++) {
        *reinterpret_cast<uint4*>(to + panel * kTile * kRow + i * 16) = make_uint4(0, 0, 0, 0);
      }
    }
    ptx::async_fence();
    ptx::sync_some(1 + group, 128);
  }

  // Caps the scores, if they are capped, and hides what a row may not see.
  __device__ __forceinline__ void shape(float (&scores)[kTile / 8][4], u32 group, u32 tile) {
    const u32 start = first + tile * kTile, lowest = position + group * 64;
    if (a.softcap != 0.0f) {
#pragma unroll
      for (u32 n = 0; n < kTile / 8; n++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) scores[n][j] = shaped(scores[n][j], a.scale, a.softcap);
      }
    }
    // Most tiles are seen whole by all rows.
    const u32 highest = lowest + 63;
    if (start + kTile <= lowest + 1 && (a.window == 0 || highest - start < a.window)) return;
#pragma unroll
    for (u32 n = 0; n < kTile / 8; n++) {
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        const u32 own = min(lowest + warp * 16 + lane / 4 + j / 2 * 8, end - 1);
        const u32 other = start + n * 8 + lane % 4 * 2 + j % 2;
        const bool seen = other <= own && (a.window == 0 || own - other < a.window);
        if (!seen) scores[n][j] = -infinity();
      }
    }
  }

  __device__ __forceinline__ void pack(u32 (&weights)[kTile / 16][4],
                                       const float (&scores)[kTile / 8][4]) {
#pragma unroll
    for (u32 i = 0; i < kTile / 4; i++) {
      const float* pair = &scores[i / 2][i % 2 * 2];
      weights[i / 4][i % 4] = ptx::pack_bf16(pair[0], pair[1]);
    }
  }

  // A warp is done with a stage.
  __device__ __forceinline__ void release(u64* barrier) {
    if (lane == 0) ptx::barrier_arrive(barrier);
  }

  __device__ __forceinline__ void wait_for_values(u32 group, u32 tile) {
    ptx::barrier_wait(values_come + tile % STAGES, tile / STAGES % 2);
    clear_unseen(group, tile);
  }

  // A warpgroup, for 64 rows.
  __device__ __forceinline__ void consume(u32 group) {
    u8* own = queries + group * kQueries;
    load_queries(own, group);
    Running<D> running;
    running.clear();
    float scores[kTile / 8][4] = {}, shrink[2];
    // Scores that are not capped are scaled where they become powers, in one operation.
    const float unit = a.softcap != 0.0f ? 1.0f : a.scale * LOG2E;
    u32 weights[kTile / 16][4];
    ptx::barrier_wait(keys_come, 0);
    score(scores, own, 0);
    ptx::wgmma_wait<0>(scores);
    release(keys_free);
    shape(scores, group, 0);
    running.take(scores, shrink, unit);
    pack(weights, scores);
    for (u32 tile = 1; tile < tiles; tile++) {
      ptx::barrier_wait(keys_come + tile % STAGES, tile / STAGES % 2);
      score(scores, own, tile);
      wait_for_values(group, tile - 1);
      mix(running, weights, tile - 1);
      ptx::wgmma_wait<1>(scores);
      release(keys_free + tile % STAGES);
      shape(scores, group, tile);
      running.take(scores, shrink, unit);
      ptx::wgmma_wait<0>(running.mixed);
      ptx::pin(weights);
      release(values_free + (tile - 1) % STAGES);
      running.scale(shrink);
      pack(weights, scores);
    }
    wait_for_values(group, tiles - 1);
    mix(running, weights, tiles - 1);
    ptx::wgmma_wait<0>(running.mixed);
    release(values_free + (tiles - 1) % STAGES);
    running.write(a, head, work.row + group * 64 + warp * 16 + lane / 4, work.row + rows);
  }

  __device__ __forceinline__ void run() {
    set_up_barriers();
    ptx::take_turn();
    const u32 group = threadIdx.x / 128;
    if (group == 0) {
      ptx::fewer_registers<40>();
      if (warp == 0) produce();
      return;
    }
    ptx::more_registers<232>();
    if ((group - 1) * 64 < rows) consume(group - 1);
  }
};

#define INSTANCE(D, O)                                                                      \
  extern "C" __global__ void __launch_bounds__(384, 1)                                      \
      prefill_attention_sm90_##D##_##O(Attention<bf16, O> a,                                \
                                       const __grid_constant__ TensorMap map) {             \
    Prefill<D, O>(a, map).run();                                                            \
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
