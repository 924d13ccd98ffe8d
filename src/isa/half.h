/* float16 and bfloat16 to float and back, one number at a time: for machines and array ends without an instruction for it.
 * Round to nearest even; a NaN keeps the top of its payload and becomes quiet, as the instructions have it. */
#ifndef FASTDROP_HALF_H
#define FASTDROP_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t float_bits(float a)
{
    uint32_t u;
    memcpy(&u, &a, 4);
    return u;
}

static inline float bits_float(uint32_t u)
{
    float a;
    memcpy(&a, &u, 4);
    return a;
}

static inline float bf16_to_f32(uint16_t h)
{
    return bits_float((uint32_t)h << 16);
}

static inline uint16_t f32_to_bf16(float a)
{
    uint32_t u = float_bits(a);
    if ((u & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, body = h & 0x7FFF;
    if (body > 0x7C00)
        return bits_float(sign | 0x7FC00000 | body << 13);
    if (body == 0x7C00)
        return bits_float(sign | 0x7F800000);
    if (body >= 0x0400)
        return bits_float(sign | ((body << 13) + 0x38000000));
    float a = (float)body * 0x1p-24f;  /* subnormal: exact */
    return bits_float(sign | float_bits(a));
}

static inline uint16_t f32_to_f16(float a)
{
    uint32_t u = float_bits(a), body = u & 0x7FFFFFFF;
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    if (body > 0x7F800000)
        return (uint16_t)(sign | 0x7E00 | (body >> 13 & 0x1FF));
    if (body >= 0x477FF000)  /* 65520 and more round to infinity */
        return sign | 0x7C00;
    if (body < 0x38800000) {  /* below 2**-14: let the adder round at the place of the last subnormal bit */
        float sum = bits_float(body) + 0.5f;
        return (uint16_t)(sign | (float_bits(sum) - 0x3F000000));
    }
    body += 0xFFF + (body >> 13 & 1);
    return (uint16_t)(sign | ((body - 0x38000000) >> 13));
}

#endif
