/* What rows.inc needs, in plain C: read by vec_scalar.h for floats and doubles.  BITS is as wide as S, whose exponent has BIAS and
 * stands MANTISSA bits up; n + MAGIC has an integer n in its low bits. */
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define OP(name) JOIN(VEC, name)

static inline VEC OP(fma)(VEC a, VEC b, VEC c)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = a.v[i] * b.v[i] + c.v[i];
    return a;
}

static inline VEC OP(fms)(VEC a, VEC b, VEC c)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = a.v[i] * b.v[i] - c.v[i];
    return a;
}

static inline VEC OP(sub)(VEC a, VEC b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = a.v[i] - b.v[i];
    return a;
}

static inline VEC OP(div)(VEC a, VEC b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = a.v[i] / b.v[i];
    return a;
}

static inline VEC OP(max)(VEC a, VEC b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}

static inline VEC OP(min)(VEC a, VEC b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}

static inline VEC OP(round)(VEC a)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = ROUND(a.v[i]);
    return a;
}

static inline VEC OP(scale2)(VEC a, VEC n)  /* 2**n: n as an integer, moved to the exponent */
{
    for (int i = 0; i < 4; i++) {
        S sum = n.v[i] + MAGIC, power;
        BITS bits;
        memcpy(&bits, &sum, sizeof bits);
        bits = (bits + BIAS) << MANTISSA;
        memcpy(&power, &bits, sizeof bits);
        a.v[i] = n.v[i] < 1 - BIAS ? 0 : a.v[i] * power;
    }
    return a;
}

static inline VEC OP(lift)(VEC a, VEC t)
{
    for (int i = 0; i < 4; i++) {
        BITS bits, integer;
        memcpy(&bits, &a.v[i], sizeof bits);
        memcpy(&integer, &t.v[i], sizeof integer);
        bits += integer << MANTISSA;
        memcpy(&a.v[i], &bits, sizeof bits);
    }
    return a;
}

static inline VEC OP(choose)(VEC c, VEC a, VEC b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = c.v[i] < 0 ? a.v[i] : b.v[i];
    return a;
}
#undef JOIN_
#undef JOIN
#undef OP
