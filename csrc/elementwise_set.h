/* All operations once, as functions SET_name_f32 and SET_name_f64 compiled for the processor's features in
 * FEATURES, and the table of them: included by elementwise.c for each set of features.
 *
 * No sum may be contracted to a fused multiply-add but where one is written, and none may be left out. */

#define FUNCTION(NAME, TYPE, BITS, EXPRESSION)                                                               \
    FEATURES static void JOIN(SET, NAME, BITS)(int64_t n, void *to_, const void *a_, const void *b_,         \
                                               const void *c_, double v_, double u_)                         \
    {                                                                                                        \
        TYPE *to = to_;                                                                                      \
        const TYPE *a = a_, *b = b_, *c = c_;                                                                \
        const TYPE v = (TYPE)v_, u = (TYPE)u_;                                                               \
        (void)a, (void)b, (void)c, (void)v, (void)u;                                                         \
        EACH_ALONE for (int64_t i = 0; i < n; i++) to[i] = EXPRESSION;                                       \
    }

#define BOTH(NAME, EXPRESSION32, EXPRESSION64)                                                               \
    FUNCTION(NAME, float, f32, EXPRESSION32)                                                                 \
    FUNCTION(NAME, double, f64, EXPRESSION64)

#define CONVERSION(NAME, TO, FROM, EXPRESSION)                                                               \
    FEATURES static void JOIN(SET, NAME, f32)(int64_t n, void *to_, const void *a_, const void *b_,          \
                                              const void *c_, double v_, double u_)                          \
    {                                                                                                        \
        TO *to = to_;                                                                                        \
        const FROM *a = a_;                                                                                  \
        (void)b_, (void)c_, (void)v_, (void)u_;                                                              \
        EACH_ALONE for (int64_t i = 0; i < n; i++) to[i] = EXPRESSION;                                       \
    }

#define SAME(NAME, EXPRESSION) BOTH(NAME, (EXPRESSION), (EXPRESSION))

SAME(COPY, a[i])
SAME(NEGATE, -a[i])
BOTH(ABS, fabsf(a[i]), fabs(a[i]))
SAME(SIGN, (a[i] > 0) - (a[i] < 0))
SAME(SQUARE, a[i] * a[i])
BOTH(SQRT, sqrtf(a[i]), sqrt(a[i]))
SAME(RECIPROCAL, 1 / a[i])
SAME(ADD_SCALAR, a[i] + v)
SAME(MUL_SCALAR, a[i] * v)
SAME(DIV_SCALAR, a[i] / v)
SAME(DIV_SCALAR_BY_MUL, a[i] * (1 / v))
SAME(ADD, a[i] + v * b[i])
BOTH(ADD_FMA, fmaf(v, b[i], a[i]), fma(v, b[i], a[i]))
FUNCTION(ADD_FLOAT16, float, f32, a[i] + round_float16(v * b[i]))
FUNCTION(ADD_BFLOAT16, float, f32, a[i] + round_bfloat16(v * b[i]))
SAME(MUL, a[i] * b[i])
SAME(DIV, a[i] / b[i])
SAME(ADDCMUL, a[i] + (v * b[i]) * c[i])
BOTH(ADDCMUL_FMA, fmaf(v *b[i], c[i], a[i]), fma(v *b[i], c[i], a[i]))
SAME(ADDCMUL_RIGHT, a[i] + v * (b[i] * c[i]))
BOTH(MUL_ADDCMUL_FMA, fmaf(v *b[i], c[i], a[i] * u), fma(v *b[i], c[i], a[i] * u))
BOTH(MUL_ADD_FMA, fmaf(v, b[i], a[i] * u), fma(v, b[i], a[i] * u))
BOTH(ADDCMUL_RIGHT_FMA, fmaf(v, b[i] * c[i], a[i]), fma(v, b[i] * c[i], a[i]))
SAME(ADDCDIV, a[i] + (v * b[i]) / c[i])
SAME(ADDCDIV_ADDED, a[i] + (v * b[i]) / (c[i] + u))
SAME(ADDCDIV_RIGHT, a[i] + v * (b[i] / c[i]))
BOTH(ADDCDIV_RIGHT_FMA, fmaf(v, b[i] / c[i], a[i]), fma(v, b[i] / c[i], a[i]))
SAME(LERP, (v < 0 ? -v : v) < (float)0.5 ? a[i] + v * (b[i] - a[i]) : b[i] + (v - 1) * (b[i] - a[i]))
BOTH(LERP_FMA, fabsf(v) < 0.5F ? fmaf(v, b[i] - a[i], a[i]) : fmaf(v - 1, b[i] - a[i], b[i]),
     fabs(v) < 0.5 ? fma(v, b[i] - a[i], a[i]) : fma(v - 1, b[i] - a[i], b[i]))
SAME(LERP_BACK, (v < 0 ? -v : v) < (float)0.5 ? a[i] + v * (b[i] - a[i]) : b[i] - (b[i] - a[i]) * (1 - v))
BOTH(LERP_BACK_FMA, fabsf(v) < 0.5F ? fmaf(v, b[i] - a[i], a[i]) : fmaf(-(b[i] - a[i]), 1 - v, b[i]),
     fabs(v) < 0.5 ? fma(v, b[i] - a[i], a[i]) : fma(-(b[i] - a[i]), 1 - v, b[i]))
#define LARGER(X, Y) ((X) != (X) || (X) > (Y) ? (X) : (Y))
#define LARGER_OR_FIRST(X, Y) ((X) != (X) || (X) >= (Y) ? (X) : (Y))
SAME(MAXIMUM, LARGER(a[i], b[i]))
SAME(MINIMUM, a[i] != a[i] || a[i] < b[i] ? a[i] : b[i])
SAME(MAXIMUM_FIRST, LARGER_OR_FIRST(a[i], b[i]))
SAME(MINIMUM_FIRST, a[i] != a[i] || a[i] <= b[i] ? a[i] : b[i])
SAME(CLAMP, a[i]<v ? (v > u ? u : v) : a[i]> u ? u : a[i])
SAME(CLAMP_MIN, a[i] < v ? v : a[i])
SAME(CLAMP_MAX, a[i] > v ? v : a[i])
#define LARGER_ZERO(X, Y) ((X) < (Y) || ((X) == (Y) && __builtin_signbit(X)) ? (Y) : (X))
#define SMALLER_ZERO(X, Y) ((X) > (Y) || ((X) == (Y) && !__builtin_signbit(X)) ? (Y) : (X))
SAME(CLAMP_ZEROS, SMALLER_ZERO(LARGER_ZERO(a[i], v), u))
SAME(CLAMP_MIN_ZEROS, LARGER_ZERO(a[i], v))
SAME(CLAMP_MAX_ZEROS, SMALLER_ZERO(a[i], v))
SAME(GREATER, a[i] > v)
SAME(LESS, a[i] < v)
SAME(EQUAL, a[i] == v)
SAME(FILL, v)
SAME(FILL_WHERE, b[i] != 0 ? v : a[i])
SAME(DIV_MUL_SCALAR, (a[i] / u) * v)
SAME(ADD_RECIPROCAL, 1 / (a[i] + u))
SAME(ADD_RECIPROCAL_MUL, (1 / (a[i] + u)) * v)
SAME(DIV_MUL, (a[i] / c[i]) * b[i])
SAME(MUL_MUL_SCALAR, (a[i] * b[i]) * v)
BOTH(ADD_PRODUCT_FMA, fmaf(v, (b[i] * c[i]) * u, a[i]), fma(v, (b[i] * c[i]) * u, a[i]))
BOTH(ABS_ADD_SCALAR, fabsf(a[i]) + v, fabs(a[i]) + v)
BOTH(MAXIMUM_ABS_ADDED, LARGER(a[i], fabsf(b[i]) + u), LARGER(a[i], fabs(b[i]) + u))
BOTH(MUL_MAXIMUM_ABS_ADDED, LARGER(a[i] * v, fabsf(b[i]) + u), LARGER(a[i] * v, fabs(b[i]) + u))
BOTH(MAXIMUM_FIRST_ABS_ADDED, LARGER_OR_FIRST(a[i], fabsf(b[i]) + u), LARGER_OR_FIRST(a[i], fabs(b[i]) + u))
BOTH(MUL_MAXIMUM_FIRST_ABS_ADDED, LARGER_OR_FIRST(a[i] * v, fabsf(b[i]) + u),
     LARGER_OR_FIRST(a[i] * v, fabs(b[i]) + u))
CONVERSION(WIDEN_FLOAT16, float, uint16_t, widen_float16(a[i]))
CONVERSION(NARROW_FLOAT16, uint16_t, float, narrow_float16(a[i]))
CONVERSION(ROUND_FLOAT16, float, float, round_float16(a[i]))
CONVERSION(WIDEN_BFLOAT16, float, uint16_t, widen_bfloat16(a[i]))
CONVERSION(NARROW_BFLOAT16, uint16_t, float, narrow_bfloat16(a[i]))
CONVERSION(ROUND_BFLOAT16, float, float, round_bfloat16(a[i]))

#define ENTRY32(NAME) [ELEMENTWISE_##NAME] = {JOIN(SET, NAME, f32), NULL},
#define ENTRY(NAME) [ELEMENTWISE_##NAME] = {JOIN(SET, NAME, f32), JOIN(SET, NAME, f64)},
static const elementwise TABLE(SET)[ELEMENTWISE_COUNT][2] = {
    ENTRY(COPY) ENTRY(NEGATE) ENTRY(ABS) ENTRY(SIGN) ENTRY(SQUARE) ENTRY(SQRT) ENTRY(RECIPROCAL) ENTRY(
        ADD_SCALAR) ENTRY(MUL_SCALAR) ENTRY(DIV_SCALAR) ENTRY(DIV_SCALAR_BY_MUL) ENTRY(ADD) ENTRY(ADD_FMA)
        ENTRY32(ADD_FLOAT16) ENTRY32(ADD_BFLOAT16) ENTRY(MUL) ENTRY(DIV) ENTRY(ADDCMUL) ENTRY(ADDCMUL_FMA)
            ENTRY(ADDCMUL_RIGHT) ENTRY(ADDCMUL_RIGHT_FMA) ENTRY(MUL_ADDCMUL_FMA) ENTRY(MUL_ADD_FMA)
                ENTRY(ADDCDIV) ENTRY(ADDCDIV_ADDED) ENTRY(ADDCDIV_RIGHT) ENTRY(ADDCDIV_RIGHT_FMA) ENTRY(LERP)
                    ENTRY(LERP_FMA) ENTRY(LERP_BACK) ENTRY(LERP_BACK_FMA) ENTRY(MAXIMUM) ENTRY(MINIMUM)
                        ENTRY(MAXIMUM_FIRST) ENTRY(MINIMUM_FIRST) ENTRY(CLAMP) ENTRY(CLAMP_MIN)
                            ENTRY(CLAMP_MAX) ENTRY(CLAMP_ZEROS) ENTRY(CLAMP_MIN_ZEROS) ENTRY(CLAMP_MAX_ZEROS)
                                ENTRY(GREATER) ENTRY(LESS) ENTRY(EQUAL) ENTRY(FILL) ENTRY(FILL_WHERE)
                                    ENTRY32(WIDEN_FLOAT16) ENTRY32(NARROW_FLOAT16) ENTRY32(ROUND_FLOAT16)
                                        ENTRY32(WIDEN_BFLOAT16) ENTRY32(NARROW_BFLOAT16)
                                            ENTRY32(ROUND_BFLOAT16) ENTRY(DIV_MUL_SCALAR)
                                                ENTRY(ADD_RECIPROCAL) ENTRY(ADD_RECIPROCAL_MUL) ENTRY(DIV_MUL)
                                                    ENTRY(MUL_MUL_SCALAR) ENTRY(ADD_PRODUCT_FMA)
                                                        ENTRY(ABS_ADD_SCALAR) ENTRY(MAXIMUM_ABS_ADDED)
                                                            ENTRY(MUL_MAXIMUM_ABS_ADDED)
                                                                ENTRY(MAXIMUM_FIRST_ABS_ADDED)
                                                                    ENTRY(MUL_MAXIMUM_FIRST_ABS_ADDED)};

#undef LARGER
#undef LARGER_OR_FIRST
#undef LARGER_ZERO
#undef SMALLER_ZERO
#undef FUNCTION
#undef CONVERSION
#undef BOTH
#undef SAME
#undef ENTRY
#undef ENTRY32
#undef SET
#undef FEATURES
