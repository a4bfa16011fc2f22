// Attention of single rows over the paged bf16 cache on tensor cores, made to read keys and
// values at the memory's speed.
//
// The query heads that share a key-value head are the 16 rows of a tensor-core product, so that
// keys and values are read once for all of them. A block takes one share of the work and one group
// of heads. A share is some pieces, each a row and a range of positions; all shares are about as
// much work, so that all blocks end at about the same time. Each warp goes through every WARPS-th
// tile of 16 positions of a piece on its own, with two tiles of shared memory: while it computes
// on one, the other is on its way. At the end the warps' results are merged; a piece that is not
// the whole row leaves an unscaled partial result, which `attention_merge` puts together.
//
// Few rows are a matter of waiting: for the list of work, the block table, the keys. So whatever
// does not hang on what is waited for is asked for before.
//
//   shared memory, by warp: [2 stages][keys, values][16 positions][D + 8], at last its results,
//   in floats: [16 queries][D mixed values, maximum, sum, 6 unused]; then [16 queries][D + 8]
#include "tensor.cuh"

#define TILE 16

// The pieces of work that a block takes, one after the other: those of its share, of which each
// names the next, then those of the share gridDim.x further on. Merges are a share each.
template <bool kInShares>
struct Pieces {
  const Work* list;
  u32 share, count;
  bool left;
  Work work;

  // The first piece is asked for together with the number of shares. Looking at both at once keeps
  // the compiler from waiting for the number alone: a piece that there is has positions.
  __device__ __forceinline__ Pieces(const Work* all, const u32* number) : list(all) {
    share = blockIdx.x;
    count = *number;
    load(share);
    const bool is_one = work.begin < work.end;
    left = is_one && share < count;
  }
  __device__ __forceinline__ void advance() {
    const bool is_last = !kInShares || work.next == NONE;
    if (is_last) share += gridDim.x;
    left = !is_last || share < count;
    if (left) load(is_last ? share : work.next);
  }
  __device__ __forceinline__ void load(u32 at) {
    const uint4 most = ptx::load_streaming(list + at);
    work = {most.x, most.y, most.z, most.w, list[at].partial, list[at].next, {}};
  }
};

template <int D, class O>
struct Decode {
  static constexpr u32 kWarps = D <= 128 ? 4 : 2;
  static constexpr u32 kPitch = D + 8;  // rows fall on different banks
  static constexpr u32 kStage = 2 * TILE * kPitch;
  // Fours of 16 queries that a thread carries.
  static constexpr u32 kFours = (16 * D / 4 + kWarps * 32 - 1) / (kWarps * 32);
  typedef Queries<D, D <= 128> Fragments;

  const Attention<bf16, O>& a;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  bf16 *ring, *query_rows;
  // The group of heads.
  u32 kv_head, head, count;

  __device__ __forceinline__ explicit Decode(const Attention<bf16, O>& args) : a(args) {
    bf16* shared = reinterpret_cast<bf16*>(ptx::dynamic_shared());
    ring = shared + warp * 2 * kStage;
    query_rows = shared + kWarps * 2 * kStage;
    const u32 group = a.heads / a.kv_heads, tiles = (group + 15) / 16;
    const u32 tile = blockIdx.y % tiles;
    kv_head = blockIdx.y / tiles;
    head = kv_head * group + tile * 16;
    count = min(16u, group - tile * 16);
  }

  // A range of a sequence's positions.
  struct Range {
    const u32* table;
    u32 begin, end;
  };

  // Where a lane's position of a tile lies, each lane of the first 16 with its own. Outside of the
  // range blocks may hold anything.
  struct Place {
    bool wanted;
    u32 block, offset;
  };
  __device__ __forceinline__ Place find(const Range& range, u32 start) const {
    const u32 position = start + lane % TILE, entry = position / a.block_size;
    const bool wanted = position >= range.begin && position < range.end;
    return {wanted, wanted ? range.table[entry] : 0, position - entry * a.block_size};
  }

  // Begins the copy of a tile's keys and values; what is not wanted becomes zeros.
  __device__ __forceinline__ void fetch(const Place& place, u32 stage) const {
    bf16* keys = ring + stage * kStage;
    bf16* values = keys + TILE * kPitch;
    const u64 row_of_layer = static_cast<u64>(kv_head) * a.block_size + place.offset;
    const bf16* own = a.kv + (place.block * a.block_stride + a.k_offset + row_of_layer * D);
    const u32 wanted = __ballot_sync(~0u, place.wanted);
    const u64 values_behind = a.v_offset - a.k_offset;
    constexpr u32 kPieces = TILE * D / 8;
// Short, lest a short piece waits for its instructions.
#pragma unroll 2
    for (u32 i = 0; i < (kPieces + 31) / 32; i++) {
      const u32 piece = i * 32 + lane, row = piece / (D / 8) % TILE, column = piece % (D / 8) * 8;
      const u64 address = __shfl_sync(~0u, reinterpret_cast<u64>(own), row);
      if (kPieces % 32 != 0 && piece >= kPieces) continue;
      const bf16* from = reinterpret_cast<const bf16*>(address) + column;
      const u32 bytes = wanted >> row & 1 ? 16 : 0;
      ptx::copy_async_16(keys + row * kPitch + column, from, bytes);
      ptx::copy_async_16(values + row * kPitch + column, from + values_behind, bytes);
    }
  }

  // The queries of a row, on their way to shared memory. What is behind them there stays what it
  // was: rows of a product do not mix.
  struct Carried {
    float4 fours[kFours];
  };
  __device__ __forceinline__ bool has_query(u32 i) const { return i / (D / 4) < count; }
  __device__ __forceinline__ void take_queries(Carried& queries, u32 row) const {
    const float* from = a.qkv + static_cast<u64>(row) * a.qkv_width + static_cast<u64>(head) * D;
#pragma unroll
    for (u32 j = 0; j < kFours; j++) {
      const u32 i = j * kWarps * 32 + threadIdx.x;
      if (has_query(i)) queries.fours[j] = load4(from + i * 4);
    }
  }
  __device__ __forceinline__ void put_queries(const Carried& queries) const {
#pragma unroll
    for (u32 j = 0; j < kFours; j++) {
      const u32 i = j * kWarps * 32 + threadIdx.x;
      bf16* to = query_rows + i / (D / 4) * kPitch + i % (D / 4) * 4;
      if (has_query(i)) store4(to, queries.fours[j]);
    }
  }

  // This warp's share of a range of positions.
  __device__ __forceinline__ void attend(Running<D>& run, const Range& range, u32 row) {
    const u32 base = range.begin / TILE * TILE, tiles = (range.end - base + TILE - 1) / TILE;
    const u32 first = base + warp * TILE;
    const Place places[2] = {find(range, first), find(range, first + kWarps * TILE)};
    // Up to here only what was there before the step.
    ptx::take_turn();
    Carried carried;
    take_queries(carried, row);
#pragma unroll
    for (u32 stage = 0; stage < 2; stage++) {
      if (warp + stage * kWarps < tiles) fetch(places[stage], stage);
      ptx::copy_async_commit();
    }
    put_queries(carried);
    __syncthreads();
    Fragments queries;
    queries.take(query_rows, kPitch);
    run.clear();
    u32 stage = 0;
    for (u32 tile = warp; tile < tiles; tile += kWarps, stage ^= 1) {
      const u32 start = base + tile * TILE;
      ptx::copy_async_wait<1>();
      __syncwarp();
      const bf16* keys = ring + stage * kStage;
      float scores[TILE / 8][4] = {};
      score(scores, queries, keys, kPitch);
#pragma unroll
      for (u32 n = 0; n < TILE / 8; n++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
          const u32 position = start + n * 8 + lane % 4 * 2 + j % 2;
          const bool seen = position >= range.begin && position < range.end;
          const float all = shaped(scores[n][j], a.scale, a.softcap);
          scores[n][j] = seen ? all : -infinity();
        }
      }
      run.weigh(scores);
      run.mix(scores, keys + TILE * kPitch, kPitch);
      // All lanes have read the stage before it is written again.
      __syncwarp();
      if (tile + 2 * kWarps < tiles) fetch(find(range, start + 2 * kWarps * TILE), stage);
      ptx::copy_async_commit();
    }
  }

  // A head's results of one warp, in that warp's ring.
  __device__ __forceinline__ float* results(u32 of_warp, u32 h) const {
    float* rings = reinterpret_cast<float*>(ptx::dynamic_shared());
    return rings + of_warp * kStage + h * kPitch;
  }

  // Leaves this warp's results in shared memory.
  __device__ __forceinline__ void leave(const Running<D>& run) const {
    const u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
      const float sum = row_sum(run.sum[r]);
      if (g + r * 8 >= count) continue;
      float* to = results(warp, g + r * 8);
#pragma unroll
      for (u32 i = 0; i < D / 8; i++) {
        store2(to + i * 8 + t * 2, run.mixed[i][2 * r], run.mixed[i][2 * r + 1]);
      }
      if (t == 0) store2(to + D, run.highest[r], sum);
    }
  }

  // Puts the warps' results together, four values at a time.
  __device__ __forceinline__ void merge(const Work& work) const {
    const bool whole = work.partial == NONE;
    for (u32 i = threadIdx.x * 4; i < count * D; i += kWarps * 128) {
      const u32 h = i / D, d = i % D;
      const bool sink = whole && a.sinks != nullptr;
      const float sink_score = sink ? a.sinks[head + h] * LOG2E : -infinity();
      float top = sink_score;
#pragma unroll
      for (u32 w = 0; w < kWarps; w++) top = fmaxf(top, results(w, h)[D]);
      float sum = ptx::exp2_fast(sink_score - top);
      float4 value = {};
#pragma unroll
      for (u32 w = 0; w < kWarps; w++) {
        const float* from = results(w, h);
        const float share = ptx::exp2_fast(from[D] - top);
        const float4 v = load4(from + d);
        sum += share * from[D + 1];
        value = make_float4(value.x + share * v.x, value.y + share * v.y, value.z + share * v.z,
                            value.w + share * v.w);
      }
      if (whole) {
        const float scale = __fdividef(1.0f, sum);
        store4(a.out + (static_cast<u64>(work.row) * a.heads + head + h) * D + d,
               make_float4(value.x * scale, value.y * scale, value.z * scale, value.w * scale));
        continue;
      }
      // Places lie aligned for two.
      float* to = a.partial + (static_cast<u64>(work.partial) * a.heads + head + h) * (D + 2);
      store2(to + d, value.x, value.y);
      store2(to + d + 2, value.z, value.w);
      if (d == 0) store2(to + D, top, sum);
    }
  }

  __device__ __forceinline__ void run() {
    Pieces<true> pieces(a.work, a.num_work);
    while (pieces.left) {
      const Work work = pieces.work;
      const u32* table = a.block_table + a.seqs[work.seq].block_table_start;
      Running<D> running;
      attend(running, {table, work.begin, work.end}, work.row);
      // On its way while results are merged.
      pieces.advance();
      leave(running);
      __syncthreads();
      merge(work);
      // The next piece's queries and tiles take the place of the results.
      __syncthreads();
    }
    // Blocks without work.
    ptx::take_turn();
  }
};

#define INSTANCE(D, O)                                                                      \
  extern "C" __global__ void __launch_bounds__(D <= 128 ? 128 : 64, D == 64 ? 4 : 3)        \
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
//
// A warp takes 64 elements of a head, two a lane. Where warps are left over, the 4 / chunks that
// share a chunk take turns with the partials, and are put together at the end.
template <class O>
struct Merge {
  // Partials that are on their way at once: all those of a short row.
  static constexpr u32 kAhead = 16;

  const Attention<bf16, O>& a;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 chunks = (a.head_dim + 63) / 64, turns = 4 / chunks;
  const u32 chunk = warp % chunks, turn = warp / chunks;
  const u32 column = chunk * 64 + lane * 2;
  // The highest maximum so far; the sum that belongs to it, by lane; and the values.
  float top, sum;
  float2 value;

  __device__ __forceinline__ explicit Merge(const Attention<bf16, O>& args) : a(args) {}

  // Adds `count` partials, `step` apart, that are this warp's.
  __device__ __forceinline__ void add(const float* from, u64 step, u32 count) {
    float2 values[kAhead] = {};
    const u32 wanted = column < a.head_dim ? count : 0;
    const float* next = from + column;
#pragma unroll
    for (u32 i = 0; i < kAhead; i++, next += step) {
      if (i < wanted) values[i] = load2(next);
    }
    // Each lane looks at one partial.
    float2 own = make_float2(-infinity(), 0.0f);
    if (lane < min(count, kAhead)) own = load2(from + lane * step + a.head_dim);
    const float before = top;
    top = fmaxf(top, warp_max(own.x));
    const float shrink = ptx::exp2_fast(before - top), share = ptx::exp2_fast(own.x - top);
    sum = sum * shrink + own.y * share;
    value = make_float2(value.x * shrink, value.y * shrink);
#pragma unroll
    for (u32 i = 0; i < kAhead; i++) {
      const float weight = __shfl_sync(~0u, share, i);
      value = make_float2(value.x + weight * values[i].x, value.y + weight * values[i].y);
    }
  }

  __device__ __forceinline__ void run() {
    __shared__ float2 values[4][32], scales[4];
    const u32 head = blockIdx.y, stride = a.head_dim + 2;
    const u64 step = static_cast<u64>(a.heads) * stride;
    Pieces<false> pieces(a.work, a.num_work);
    ptx::take_turn();
    for (; pieces.left; pieces.advance()) {
      const Work& work = pieces.work;
      top = -infinity();
      sum = 0.0f;
      value = make_float2(0.0f, 0.0f);
      const float* first = a.partial + work.begin * step + head * stride;
      const u32 count = work.end - work.begin;
      if (turn < turns) {
        for (u32 i = turn; i < count; i += kAhead * turns) {
          add(first + i * step, turns * step, (count - i + turns - 1) / turns);
        }
      }
      values[warp][lane] = value;
      const float total = warp_sum(sum);
      if (lane == 0) scales[warp] = make_float2(top, total);
      __syncthreads();
      if (turn == 0 && column < a.head_dim) put(values, scales, work.row, head);
      __syncthreads();
    }
  }

  // Adds up what the warps of a chunk have, with a sink where there is one.
  __device__ __forceinline__ void put(const float2 (*values)[32], const float2* scales, u32 row,
                                      u32 head) const {
    const float sink = a.sinks != nullptr ? a.sinks[head] * LOG2E : -infinity();
    float2 scale[4], mixed = {};
    float highest = sink;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      scale[i] = i < turns ? scales[chunk + i * chunks] : make_float2(-infinity(), 0.0f);
      highest = fmaxf(highest, scale[i].x);
    }
    float all = ptx::exp2_fast(sink - highest);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      const float share = ptx::exp2_fast(scale[i].x - highest);
      const float2 v = i < turns ? values[chunk + i * chunks][lane] : make_float2(0.0f, 0.0f);
      all += share * scale[i].y;
      mixed = make_float2(mixed.x + share * v.x, mixed.y + share * v.y);
    }
    const float part = __fdividef(1.0f, all);
    O* to = a.out + (static_cast<u64>(row) * a.heads + head) * a.head_dim + column;
    store2(to, mixed.x * part, mixed.y * part);
  }
};

extern "C" __global__ void __launch_bounds__(128) attention_merge_f32(Attention<bf16, f32> a) {
  Merge<f32>(a).run();
}
extern "C" __global__ void __launch_bounds__(128) attention_merge_bf16(Attention<bf16, bf16> a) {
  Merge<bf16>(a).run();
}
