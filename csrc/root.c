/* Intel's square root of float32 is not rounded correctly: one value in six differs in the last bit from the
 * processor's.  On processors of AMD (seen on Zen 3) it has the bits of two steps of Newton's method that begin at
 * the processor's estimate of 1 / sqrt(a) and fuse nothing.  Those take less than half of the time, and none for a
 * call. */
#include "root.h"

#include <stdatomic.h>
#include <string.h>

#include "mkl.h"

#ifdef __x86_64__
#include <immintrin.h>

#define FEATURES __attribute__((target("avx2")))

/* The bits of the least normal number, and how far above them those of 2^127 are, from which on the square of a
 * root may overflow. */
enum { LEAST = 0x00800000, SMALLER = 0x7f000000 - LEAST };

/* Take the roots of eight, each at least LEAST and less than SMALLER more. */
FEATURES static inline __m256 root(__m256 a)
{
    const __m256 half = _mm256_set1_ps(0.5F), y = _mm256_rsqrt_ps(a);
    __m256 s = _mm256_mul_ps(a, y), h = _mm256_mul_ps(y, half);
    const __m256 e = _mm256_sub_ps(half, _mm256_mul_ps(s, h));
    s = _mm256_add_ps(s, _mm256_mul_ps(s, e));
    h = _mm256_add_ps(h, _mm256_mul_ps(h, e));
    return _mm256_add_ps(s, _mm256_mul_ps(h, _mm256_sub_ps(a, _mm256_mul_ps(s, s))));
}

/* Return how far above LEAST each number's bits are: those of zero and of negative ones are far above all others. */
FEATURES static inline __m256i how_far_above(__m256 a)
{
    return _mm256_sub_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(LEAST));
}

/* Take the roots of eight as well if some of them are zeros; tell whether there is something else. */
FEATURES static inline int root_or_zero(__m256 a, float *to)
{
    const __m256i above = how_far_above(a), limit = _mm256_set1_epi32(SMALLER);
    const __m256i is_other = _mm256_cmpeq_epi32(_mm256_max_epu32(above, limit), above);
    const __m256 is_zero = _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_EQ_OQ);
    _mm256_storeu_ps(to, _mm256_blendv_ps(root(a), a, is_zero));
    return _mm256_movemask_ps(_mm256_andnot_ps(is_zero, _mm256_castsi256_ps(is_other)));
}

/* So many are looked at together; where one is no usual number, MKL's call takes their roots. */
enum { LANES = 8, VECTORS = 4, TOGETHER = VECTORS * LANES };

FEATURES static void some_roots(const float *a, float *to)
{
    float found[TOGETHER];
    int is_strange = 0;
    for (int k = 0; k < TOGETHER; k += LANES)
        is_strange |= root_or_zero(_mm256_loadu_ps(a + k), found + k);
    if (is_strange)
        mkl_sqrt_f32(TOGETHER, a, to);
    else
        memcpy(to, found, sizeof found);
}

FEATURES static void roots(int64_t n, const float *a, float *to)
{
    const __m256i limit = _mm256_set1_epi32(SMALLER);
    int64_t i = 0;
    for (; i + TOGETHER <= n; i += TOGETHER) {
        __m256 x[VECTORS];
        __m256i most = _mm256_setzero_si256();
        for (int k = 0; k < VECTORS; k++) {
            x[k] = _mm256_loadu_ps(a + i + k * LANES);
            most = _mm256_max_epu32(most, how_far_above(x[k]));
        }
        if (_mm256_movemask_epi8(_mm256_cmpeq_epi32(_mm256_max_epu32(most, limit), most)) == 0)
            for (int k = 0; k < VECTORS; k++)
                _mm256_storeu_ps(to + i + k * LANES, root(x[k]));
        else
            some_roots(a + i, to + i);
    }
    if (i < n) {
        float some[TOGETHER] = {0};
        const size_t bytes = (size_t)(n - i) * sizeof *a;
        memcpy(some, a + i, bytes);
        some_roots(some, some);
        memcpy(to + i, some, bytes);
    }
}

/* Tell whether so many numbers, of which the first has these bits, have MKL's roots to the bit. */
static int are_mkls(uint32_t first, int64_t n)
{
    enum { FEW = 2048 };
    uint32_t bits[FEW], other[FEW];
    float a[FEW], found[FEW];
    for (int64_t i = 0; i < n; i += FEW) {
        for (int k = 0; k < FEW; k++)
            bits[k] = first + (uint32_t)i + (uint32_t)k;
        memcpy(a, bits, sizeof a);
        roots(FEW, a, found);
        memcpy(bits, found, sizeof bits);
        mkl_sqrt_f32(FEW, a, found);
        memcpy(other, found, sizeof other);
        if (memcmp(bits, other, sizeof bits) != 0)
            return 0;
    }
    return 1;
}

/* Roots of numbers four times as large are twice as large, exactly: so all mantissas are tried of two exponents, and
 * some of all. */
static int is_proven(void)
{
    enum { MANTISSAS = 1 << 23, SOME = 1 << 11, ONE = 0x3f800000 };
    const uint32_t negative = 0x80000000;
    if (!__builtin_cpu_supports("avx2"))
        return 0;
    for (uint32_t exponent = 0; exponent < negative; exponent += MANTISSAS)
        if (!are_mkls(exponent, SOME) || !are_mkls(exponent + MANTISSAS - SOME, SOME))
            return 0;
    return are_mkls(negative, SOME) && are_mkls(ONE, 2 * MANTISSAS);
}
#endif

int root_find(void)
{
#ifdef __x86_64__
    enum { UNKNOWN, PROVEN, REFUTED };
    static int _Atomic known;
    int state = atomic_load(&known);
    if (state == UNKNOWN && mkl_find()) /* torch's libraries may not be there yet */
        atomic_store(&known, state = is_proven() ? PROVEN : REFUTED);
    return state == PROVEN;
#else
    return 0;
#endif
}

void root_f32(int64_t n, const float *a, float *to)
{
#ifdef __x86_64__
    /* MKL takes them in the usual floating-point mode, whichever this thread is in. */
    if ((_mm_getcsr() & 0xFFC0) == 0x1F80) {
        roots(n, a, to);
        return;
    }
#endif
    mkl_sqrt_f32(n, a, to);
}
