// y = x W^T + bias for at most 16 rows: every weight is read once, so the memory's speed decides.
//
// A unit of work is a set of 16 outputs of each row, or one split of their sums; two sets where k
// is so short that half of the warps are enough for one. A block of 16 warps takes one unit after
// another; the warps share a set's k in turns of 128. The weights of a warp's next turn, be it of
// the next unit, are on their way while it computes on those of this one, and the first turn's are
// asked for before the kernel waits for the one that makes `x`: the memory is never left idle.
//
// A block's first unit is its own; further ones it draws by tickets. Blocks do not all begin at
// once where the kernel before still holds a multiprocessor, and who comes late must not keep a
// share of the work.
//
// The weights are the tensor core's A and the rows its B. Neither passes through shared memory: a
// product does not care in which order k is summed, so a lane takes 8 consecutive elements of a
// row, 16 bytes in one load, and calls them the k that its registers stand for, in A and B alike.
//
//   registers of lane (g, t): A rows g and g + 8, B column g; each k = 8 t .. 8 t + 7 of 32
//
// Sums are taken in one order for each (n, k, splits), whatever the number of rows.
#include "reduce.cuh"

#define WARPS 16
// k of one warp's turn, as 4 loads of 32.
#define STEP 128

__device__ __forceinline__ uint4 zero4() { return make_uint4(0, 0, 0, 0); }

// Two products of 16 k each.
__device__ __forceinline__ void multiply(float* sums, const uint4& w0, const uint4& w1,
                                         const uint4& x) {
  const u32 a[4] = {w0.x, w1.x, w0.y, w1.y}, b[2] = {x.x, x.y};
  ptx::mma_16x8x16(sums, a, b);
  const u32 c[4] = {w0.z, w1.z, w0.w, w1.w}, d[2] = {x.z, x.w};
  ptx::mma_16x8x16(sums, c, d);
}

// Weights of one turn.
struct Weights {
  uint4 low[4], high[4];
};

// Which turn a warp is at, which unit comes next, which of two places takes the unit's results; and
// in thread 0 the unit after the next.
struct Place {
  u32 unit, next, turn, side, drawn;
};

// TILES: 8 rows each.
template <int TILES>
struct Skinny {
  float* y;
  const bf16 *x, *w;
  const float* bias;
  float* partial;
  u32* tickets;
  const u32 rows, n, k, accumulate, splits;
  // k of a split in steps.
  const u32 share;
  // Sets of a unit: 1 or 2.
  const u32 sides;
  // Units of a split, and in all.
  const u32 part, units;
  // Turns that each warp takes for a unit.
  const u32 turns;
  const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

  __device__ __forceinline__ Skinny(float* y, const bf16* x, const bf16* w, const float* bias,
                                    float* partial, u32* tickets, u32 rows, u32 n, u32 k,
                                    u32 accumulate, u32 splits)
      : y(y),
        x(x),
        w(w),
        bias(bias),
        partial(partial),
        tickets(tickets),
        rows(rows),
        n(n),
        k(k),
        accumulate(accumulate),
        splits(splits),
        share(((k + STEP - 1) / STEP + splits - 1) / splits),
        sides(share <= WARPS / 2 ? 2 : 1),
        part(((n + 15) / 16 + sides - 1) / sides),
        units(part * splits),
        turns((share + team() - 1) / team()) {}

  // Warps that share a set, which of them this is, and which set.
  __device__ __forceinline__ u32 team() const { return sides == 2 ? WARPS / 2 : WARPS; }
  __device__ __forceinline__ u32 member() const { return warp & (team() - 1); }
  __device__ __forceinline__ u32 side() const { return warp >= team() ? 1 : 0; }

  // Where this warp's turn begins, and where the unit's k ends.
  __device__ __forceinline__ u32 first_k(u32 unit, u32 turn) const {
    return (unit / part * share + turn * team() + member()) * STEP;
  }
  __device__ __forceinline__ u32 end_k(u32 unit) const {
    return min(k, (unit / part + 1) * share * STEP);
  }
  // The first output of one of a unit's sets.
  __device__ __forceinline__ u32 first_output(u32 unit, u32 side) const {
    return (unit % part * sides + side) * 16;
  }

  __device__ __forceinline__ void load(Weights& to, u32 unit, u32 turn) const {
    const u32 first = first_output(unit, side()) + g;
    const u32 k0 = first_k(unit, turn), end = end_k(unit);
    const bool low = first < n, high = first + 8 < n;
    const bf16* from = w + static_cast<u64>(first) * k;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      const u32 at = k0 + i * 32 + t * 8;
      to.low[i] = at < end && low ? ptx::load_streaming(from + at) : zero4();
      to.high[i] =
          at < end && high ? ptx::load_streaming(from + static_cast<u64>(8) * k + at) : zero4();
    }
  }

  __device__ __forceinline__ uint4 load_rows(u32 tile, u32 at, u32 end) const {
    const u32 row = tile * 8 + g;
    const bf16* from = x + static_cast<u64>(row) * k + at;
    return at < end && row < rows ? *reinterpret_cast<const uint4*>(from) : zero4();
  }

  // Adds up the warps' sums of a unit. `results` is free again after the next unit's.
  __device__ __forceinline__ void finish(float (*results)[TILES * 8][17],
                                         float (&sums)[TILES][4], u32 unit) const {
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        results[warp][tile * 8 + t * 2 + i % 2][g + i / 2 * 8] = sums[tile][i];
        sums[tile][i] = 0.0f;
      }
    }
    __syncthreads();
    const u32 side = threadIdx.x / 256, row = threadIdx.x / 16 % 16;
    const u32 output = first_output(unit, side) + threadIdx.x % 16;
    if (side >= sides || row >= rows || row >= TILES * 8 || output >= n) return;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = 0; i < WARPS; i++) {
      if (i < team()) sum += results[side * team() + i][row][threadIdx.x % 16];
    }
    const u64 at = static_cast<u64>(row) * n + output;
    if (partial != nullptr) {
      partial[static_cast<u64>(unit / part) * rows * n + at] = sum;
      return;
    }
    if (bias != nullptr) sum += bias[output];
    y[at] = accumulate ? y[at] + sum : sum;
  }

  // A further unit; the last ticket of a launch puts the number back to 0. A block draws one when
  // it begins, and one more for each unit that it takes.
  __device__ __forceinline__ u32 draw() const {
    if (units <= gridDim.x) return NONE;
    const u32 ticket = atomicAdd(tickets, 1u);
    if (ticket == units + gridDim.x - 1) *tickets = 0;
    return gridDim.x + ticket;
  }

  // One turn on `now`, with the weights of the turn after it on their way to `next`. False after
  // the last one.
  __device__ __forceinline__ bool take(const Weights& now, Weights& next, Place& place,
                                       float (&sums)[TILES][4]) const {
    // By warp, row and output; two in turn.
    __shared__ float results[2][WARPS][TILES * 8][17];
    __shared__ u32 drawn[2];
    const u32 unit = place.unit;
    const bool is_last = place.turn + 1 == turns;
    if (threadIdx.x == 0 && place.turn == 0) place.drawn = draw();
    const u32 from = first_k(unit, place.turn) + t * 8, end = end_k(unit);
    uint4 b[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) b[i] = load_rows(0, from + i * 32, end);
    place.turn = is_last ? 0 : place.turn + 1;
    place.unit = is_last ? place.next : unit;
    const bool goes_on = place.unit < units;
    if (goes_on) load(next, place.unit, place.turn);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      multiply(sums[0], now.low[i], now.high[i], b[i]);
#pragma unroll
      for (u32 tile = 1; tile < TILES; tile++) {
        // Only now: there are no registers for two.
        multiply(sums[tile], now.low[i], now.high[i], load_rows(tile, from + i * 32, end));
      }
    }
    if (is_last) {
      if (threadIdx.x == 0) drawn[place.side] = place.drawn;
      finish(results[place.side], sums, unit);
      place.next = drawn[place.side];
      place.side ^= 1;
    }
    return goes_on;
  }

  __device__ __forceinline__ void run() const {
    __shared__ u32 second;
    Place place = {blockIdx.x, NONE, 0, 0, NONE};
    Weights even, odd;
    const bool begins = place.unit < units;
    if (begins) load(even, place.unit, 0);
    ptx::take_turn();
    if (threadIdx.x == 0) second = draw();
    __syncthreads();
    place.next = second;
    float sums[TILES][4] = {};
    // Twice the same, for registers that are named: a copy of them would wait for the loads.
    bool goes_on = begins;
    while (goes_on) {
      goes_on = take(even, odd, place, sums);
      if (goes_on) goes_on = take(odd, even, place, sums);
    }
  }
};

extern "C" __global__ void __launch_bounds__(512, 1)
    skinny_gemm_8(float* y, const bf16* x, const bf16* w, const float* bias, float* partial,
                  u32* tickets, u32 rows, u32 n, u32 k, u32 accumulate, u32 splits) {
  Skinny<1>(y, x, w, bias, partial, tickets, rows, n, k, accumulate, splits).run();
}
extern "C" __global__ void __launch_bounds__(512, 1)
    skinny_gemm_16(float* y, const bf16* x, const bf16* w, const float* bias, float* partial,
                   u32* tickets, u32 rows, u32 n, u32 k, u32 accumulate, u32 splits) {
  Skinny<2>(y, x, w, bias, partial, tickets, rows, n, k, accumulate, splits).run();
}

// Adds up what the splits left, in order.
extern "C" __global__ void __launch_bounds__(256)
    skinny_sum(float* y, const float* bias, const float* partial, u32 splits, u32 n,
               u32 accumulate) {
  ptx::take_turn();
  const u32 i = blockIdx.x * 256 + threadIdx.x, rows = gridDim.y;
  if (i >= n) return;
  const u64 at = static_cast<u64>(blockIdx.y) * n + i;
  float sum = 0.0f;
  for (u32 s = 0; s < splits; s++) sum += partial[static_cast<u64>(s) * rows * n + at];
  if (bias != nullptr) sum += bias[i];
  y[at] = accumulate ? y[at] + sum : sum;
}
