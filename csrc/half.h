/* Half precision: float16 and bfloat16 as float32, rounded to the nearest, a tie to even, as torch does. */
#ifndef OPTPLUG_HALF_H
#define OPTPLUG_HALF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- bfloat16: the upper half of a float32 ---- */

static inline float widen_bfloat16(uint16_t value) { return float_of((uint32_t)value << 16); }

static inline float round_bfloat16(float value)
{
    uint32_t bits = bits_of(value);
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
    return float_of(value != value ? 0x7FC00000 : bits);
}

static inline uint16_t narrow_bfloat16(float value)
{
    return (uint16_t)(bits_of(round_bfloat16(value)) >> 16);
}

/* ---- float16: 5 bits of exponent, 10 of mantissa; below 2^-14 multiples of 2^-24 ---- */

static inline float widen_float16(uint16_t value)
{
    const uint32_t sign = (uint32_t)(value & 0x8000) << 16, rest = value & 0x7FFF;
    const uint32_t usual = (rest << 13) + ((127 - 15) << 23);
    const uint32_t small = bits_of((float)(int32_t)rest * 0x1p-24F);
    return float_of(sign | (rest < 0x0400 ? small : rest < 0x7C00 ? usual : rest << 13 | 0x7F800000));
}

static inline float round_float16(float value)
{
    const uint32_t sign = bits_of(value) & 0x80000000, rest = bits_of(value) & 0x7FFFFFFF;
    const uint32_t usual = (rest + 0x0FFF + (rest >> 13 & 1)) & 0xFFFFE000;
    const uint32_t small = bits_of((float_of(rest) + 0.5F) - 0.5F); /* whose last bit is 2^-24 there */
    const uint32_t rounded = rest < 0x38800000 ? small : usual >= 0x47800000 ? 0x7F800000 : usual;
    return float_of(sign | (rest > 0x7F800000 ? 0x7FC00000 : rounded));
}

static inline uint16_t narrow_float16(float value)
{
    const float rounded = round_float16(value);
    const uint32_t sign = bits_of(rounded) >> 16 & 0x8000, rest = bits_of(rounded) & 0x7FFFFFFF;
    const uint32_t small = (uint32_t)(int32_t)(float_of(rest < 0x38800000 ? rest : 0) * 0x1p24F);
    const uint32_t usual = (rest - ((127 - 15) << 23)) >> 13;
    return (uint16_t)(sign | (rest < 0x38800000   ? small
                              : rest < 0x7F800000 ? usual
                                                  : (rest >> 13 & 0x03FF) | 0x7C00));
}

#endif
