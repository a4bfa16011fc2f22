/* What this machine can do: how fast two threads read memory, by several readers, and how many
 * operations its dot products do from registers. Prints one JSON line.
 * cc -O2 -pthread machine.c -o machine && ./machine [THREADS [read]]
 * `read` leaves out all but the readers with all threads, each at its average over some seconds. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST 64
static const size_t BYTES = (size_t)1 << 30;
static const long TURNS = 8000000;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* A share of the work: bytes for readers, turns for arithmetic. */
struct share {
    const char *at;
    size_t len;
    int streams;
    int ahead; /* bytes that are prefetched before they are read, or 0 */
    volatile long long sink;
};

/* `streams` cursors walk parts of the share side by side, `ahead` bytes behind the prefetches; four
 * registers are summed from each in turn. */
#define READER(name, features, type, zero, add, load, reduce)                      \
    __attribute__((target(features))) static void *name(void *p) {                 \
        struct share *s = p;                                                       \
        const size_t bytes = 4 * sizeof(type);                                     \
        size_t part = s->len / s->streams / bytes * bytes;                         \
        type a = zero, b = a, c = a, d = a;                                        \
        for (size_t i = 0; i < part; i += bytes) {                                 \
            for (int n = 0; n < s->streams; n++) {                                 \
                const char *at = s->at + n * part + i;                             \
                if (s->ahead)                                                      \
                    for (size_t line = 0; line < bytes; line += 64)                \
                        _mm_prefetch(at + line + s->ahead, _MM_HINT_T0);           \
                a = add(a, load((const type *)at));                                \
                b = add(b, load((const type *)at + 1));                            \
                c = add(c, load((const type *)at + 2));                            \
                d = add(d, load((const type *)at + 3));                            \
            }                                                                      \
        }                                                                          \
        s->sink = reduce(add(add(a, b), add(c, d)));                               \
        return NULL;                                                               \
    }

#define LOWEST(sum) _mm_cvtsi128_si64(_mm256_castsi256_si128(sum))
READER(read_256, "avx2", __m256i, _mm256_setzero_si256(), _mm256_add_epi64, _mm256_loadu_si256,
       LOWEST)
READER(read_512, "avx512f", __m512i, _mm512_setzero_si512(), _mm512_add_epi64, _mm512_loadu_si512,
       _mm512_reduce_add_epi64)

/* Twelve independent sums hide the latency of each instruction, and leave registers for what is
 * multiplied where there are sixteen. */
#define SUMS 12
#define ARITHMETIC(name, features, type, zero, step, reduce)                       \
    __attribute__((target(features))) static void *name(void *p) {                 \
        struct share *s = p;                                                       \
        type sum[SUMS];                                                            \
        for (int i = 0; i < SUMS; i++) sum[i] = zero;                              \
        for (long turn = 0; turn < TURNS; turn++) {                                \
            _Pragma("GCC unroll 12") for (int i = 0; i < SUMS; i++) {              \
                step;                                                              \
            }                                                                      \
        }                                                                          \
        for (int i = 0; i < SUMS; i++) s->sink += (long long)reduce(sum[i]);       \
        return NULL;                                                               \
    }

ARITHMETIC(fma_256, "avx2,fma", __m256, _mm256_set1_ps(i),
           sum[i] = _mm256_fmadd_ps(_mm256_set1_ps(1.0001f), _mm256_set1_ps(1e-3f), sum[i]),
           _mm256_cvtss_f32)
/* No one instruction multiplies bytes and adds 32 bits: products, sums of four, the total. Each
 * goes on from the one before, so that none can be done beforehand. */
ARITHMETIC(dot_words, "avx2", __m256i, _mm256_set1_epi32(i),
           sum[i] = _mm256_add_epi32(
               _mm256_set1_epi32(5),
               _mm256_madd_epi16(_mm256_maddubs_epi16(sum[i], _mm256_set1_epi8(3)),
                                 _mm256_set1_epi16(7))),
           LOWEST)
/* The same with the total in 16 bits, which a few products of 4 bits fit. */
ARITHMETIC(dot_nibbles, "avx2", __m256i, _mm256_set1_epi32(i),
           sum[i] = _mm256_adds_epi16(_mm256_set1_epi16(5),
                                      _mm256_maddubs_epi16(sum[i], _mm256_set1_epi8(3))),
           LOWEST)
ARITHMETIC(fma_512, "avx512f", __m512, _mm512_set1_ps(i),
           sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(1.0001f), _mm512_set1_ps(1e-3f), sum[i]),
           _mm512_cvtss_f32)
ARITHMETIC(dot_bf16, "avx512f,avx512bf16", __m512, _mm512_set1_ps(i),
           sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)_mm512_set1_epi32(0x3f803f80),
                                     (__m512bh)_mm512_set1_epi32(0x3c003c00)),
           _mm512_cvtss_f32)
ARITHMETIC(dot_int8, "avx512f,avx512vnni", __m512i, _mm512_set1_epi32(i),
           sum[i] = _mm512_dpbusd_epi32(sum[i], _mm512_set1_epi8(3), _mm512_set1_epi8(1)),
           _mm512_reduce_add_epi32)

/* Four tiles of sums; a tile takes 16 x 16 x 32 products of bf16. */
__attribute__((target("amx-tile,amx-bf16"))) static void *dot_amx(void *p) {
    (void)p;
    struct {
        unsigned char palette, start, reserved[14];
        unsigned short columns[16];
        unsigned char rows[16];
    } __attribute__((aligned(64))) config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.columns[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    _tile_zero(4); _tile_zero(5);
    for (long turn = 0; turn < TURNS / 4; turn++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_release();
    return NULL;
}

/* Linux gives the tiles' state to who asks. */
static int has_amx(void) {
    unsigned a = 7, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return d >> 22 & 1 && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

/* Seconds that `threads` need for their shares. */
static double run(void *(*work)(void *), struct share *shares, int threads) {
    pthread_t ids[MOST];
    double began = now();
    for (int i = 0; i < threads; i++) pthread_create(&ids[i], NULL, work, &shares[i]);
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    return now() - began;
}

static double best_of(int rounds, void *(*work)(void *), struct share *shares, int threads) {
    double best = 1e9;
    for (int round = 0; round < rounds; round++) {
        double took = run(work, shares, threads);
        if (took < best) best = took;
    }
    return best;
}

static int first = 1;
static void print(const char *name, int threads, double value) {
    printf("%s\"%s, %d thread%s\": %.1f", first ? "{" : ", ", name, threads,
           threads > 1 ? "s" : "", value);
    fflush(stdout);
    first = 0;
}

struct way {
    int streams, ahead;
};
static const struct way WAYS[] = {{1, 0},    {2, 0},     {4, 0},    {8, 0},    {16, 0}, {1, 1024},
                                  {1, 4096}, {1, 16384}, {2, 8192}, {4, 2048}, {8, 4096}};
#define NUM_WAYS (int)(sizeof WAYS / sizeof WAYS[0])
/* Narrow loads first; wide ones where the machine has them. */
#define MOST_READERS (2 * NUM_WAYS)

static double read_once(int reader, int threads, const char *memory) {
    struct way way = WAYS[reader % NUM_WAYS];
    struct share shares[MOST];
    for (int i = 0; i < threads; i++) {
        size_t len = BYTES / threads;
        shares[i] = (struct share){memory + i * len, len, way.streams, way.ahead, 0};
    }
    return run(reader < NUM_WAYS ? read_256 : read_512, shares, threads);
}

/* The best reader's rate: each at its fastest or, with `average`, over all of its rounds. They take
 * turns, for memory's speed changes within the second. */
static double readers(int threads, const char *memory, int average) {
    double least[MOST_READERS], sum[MOST_READERS] = {0}, best = 0;
    int rounds = average ? 9 : 7;
    int count = __builtin_cpu_supports("avx512f") ? MOST_READERS : NUM_WAYS;
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < count; i++) {
            double took = read_once(i, threads, memory);
            sum[i] += took;
            if (round == 0 || took < least[i]) least[i] = took;
        }
    for (int i = 0; i < count; i++) {
        double rate = BYTES / (average ? sum[i] / rounds : least[i]) / 1e9;
        char name[80];
        snprintf(name, sizeof name, "read %d bits, %d streams, %d ahead, GB/s",
                 i < NUM_WAYS ? 256 : 512, WAYS[i % NUM_WAYS].streams, WAYS[i % NUM_WAYS].ahead);
        print(name, threads, rate);
        if (rate > best) best = rate;
    }
    return best;
}

static void arithmetic(int threads) {
    struct share shares[MOST] = {{0}};
    double turns = (double)threads * TURNS * SUMS / 1e9;
    print("f32 FMA 256 bits, GFLOP/s", threads, turns * 16 / best_of(3, fma_256, shares, threads));
    print("vpmaddubsw and vpmaddwd, GOP/s", threads,
          turns * 64 / best_of(3, dot_words, shares, threads));
    print("vpmaddubsw, GOP/s", threads, turns * 64 / best_of(3, dot_nibbles, shares, threads));
    if (__builtin_cpu_supports("avx512f"))
        print("f32 FMA 512 bits, GFLOP/s", threads,
              turns * 32 / best_of(3, fma_512, shares, threads));
    if (__builtin_cpu_supports("avx512bf16"))
        print("vdpbf16ps, GFLOP/s", threads, turns * 64 / best_of(3, dot_bf16, shares, threads));
    if (__builtin_cpu_supports("avx512vnni"))
        print("vpdpbusd, GOP/s", threads, turns * 128 / best_of(3, dot_int8, shares, threads));
    if (has_amx())
        print("tdpbf16ps, GFLOP/s", threads,
              (double)threads * TURNS * 16 * 16 * 64 / 1e9 / best_of(3, dot_amx, shares, threads));
}

int main(int argc, char **argv) {
    int most = argc > 1 ? atoi(argv[1]) : 2;
    if (most < 1 || most > MOST || !__builtin_cpu_supports("avx2")) return 2;
    /* Half a MiB more than is read: prefetches run past the end. */
    size_t room = BYTES + (1 << 19);
    char *memory = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    madvise(memory, room, MADV_HUGEPAGE);
    memset(memory, 1, room);
    double best = 0;
    if (argc > 2) {
        readers(most, memory, 1);
        puts("}");
        return 0;
    }
    for (int threads = 1; threads <= most; threads += most > 1 ? most - 1 : 1) {
        double rate = readers(threads, memory, 0);
        if (rate > best) best = rate;
        arithmetic(threads);
    }
    print("best read, GB/s", most, best);
    puts("}");
    return 0;
}
