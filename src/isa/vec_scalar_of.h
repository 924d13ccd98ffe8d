/* Vectors of four numbers in plain C: read by vec_scalar.h for floats and doubles.  They consist of the compiler's own vectors of
 * 16 bytes, which it takes apart where the machine has none: arrays of four took it twice as long to compile, into code that was up to
 * four times slower.  WORD is as wide as S, whose exponent has BIAS and stands MANTISSA bits up; n + MAGIC has an integer n in its
 * low bits. */
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define OP(name) JOIN(VEC, name)
#define REGISTER OP(register)
#define WORDS OP(words)
#define EACH_REGISTER for (size_t i = 0; i < 4 * sizeof(S) / 16; i++)

typedef S REGISTER __attribute__((vector_size(16)));
typedef WORD WORDS __attribute__((vector_size(16)));
typedef struct { REGISTER v[4 * sizeof(S) / 16]; } VEC;

static inline VEC OP(load)(const S *p)
{
    VEC a;
    EACH_REGISTER
        memcpy(&a.v[i], (const char *)p + 16 * i, 16);
    return a;
}

static inline void OP(store)(S *p, VEC a)
{
    EACH_REGISTER
        memcpy((char *)p + 16 * i, &a.v[i], 16);
}

static inline void OP(stream)(S *p, VEC a) { OP(store)(p, a); }
static inline VEC OP(set)(S a) { return OP(load)((const S[4]){a, a, a, a}); }

static inline REGISTER OP(where)(WORDS m, REGISTER a, REGISTER b) { return (REGISTER)((m & (WORDS)a) | (~m & (WORDS)b)); }

static inline VEC OP(mul)(VEC a, VEC b)
{
    EACH_REGISTER
        a.v[i] *= b.v[i];
    return a;
}

static inline VEC OP(sum)(VEC a, VEC b)
{
    EACH_REGISTER
        a.v[i] += b.v[i];
    return a;
}

static inline VEC OP(sub)(VEC a, VEC b)
{
    EACH_REGISTER
        a.v[i] -= b.v[i];
    return a;
}

static inline VEC OP(div)(VEC a, VEC b)
{
    EACH_REGISTER
        a.v[i] /= b.v[i];
    return a;
}

static inline VEC OP(fma)(VEC a, VEC b, VEC c) { return OP(sum)(OP(mul)(a, b), c); }
static inline VEC OP(fms)(VEC a, VEC b, VEC c) { return OP(sub)(OP(mul)(a, b), c); }

static inline VEC OP(where_positive)(VEC a, VEC b)
{
    EACH_REGISTER
        a.v[i] = (REGISTER)((WORDS)a.v[i] & ~(WORDS)(b.v[i] <= (REGISTER){0}));
    return a;
}

static inline VEC OP(keep)(VEC a, uint64_t bits)
{
    const vf_words bit = LANE_BITS;
    EACH_REGISTER
        a.v[i] = (REGISTER)((vf_words)a.v[i] & (vf_words)(((uint32_t)(bits >> i * 16 / sizeof(S)) & bit) == bit));
    return a;
}

static inline VEC OP(sum_kept)(VEC a, VEC b, uint64_t bits) { return OP(sum)(a, OP(keep)(b, bits)); }

static inline VEC OP(max)(VEC a, VEC b)
{
    EACH_REGISTER
        a.v[i] = OP(where)((WORDS)(a.v[i] > b.v[i]), a.v[i], b.v[i]);
    return a;
}

static inline VEC OP(min)(VEC a, VEC b)
{
    EACH_REGISTER
        a.v[i] = OP(where)((WORDS)(a.v[i] < b.v[i]), a.v[i], b.v[i]);
    return a;
}

static inline VEC OP(choose)(VEC c, VEC a, VEC b)
{
    EACH_REGISTER
        a.v[i] = OP(where)((WORDS)(c.v[i] < (REGISTER){0}), a.v[i], b.v[i]);
    return a;
}

static inline VEC OP(round)(VEC a)  /* of numbers below MAGIC / 4; larger ones only stay large */
{
    return OP(sub)(OP(sum)(a, OP(set)(MAGIC)), OP(set)(MAGIC));
}

static inline VEC OP(scale2)(VEC a, VEC n)  /* 2**n: n as an integer, moved to the exponent */
{
    const VEC sum = OP(sum)(n, OP(set)(MAGIC)), least = OP(set)(1 - BIAS);
    EACH_REGISTER {
        const REGISTER power = (REGISTER)(((WORDS)sum.v[i] + BIAS) << MANTISSA);
        a.v[i] = (REGISTER)((WORDS)(a.v[i] * power) & ~(WORDS)(n.v[i] < least.v[i]));
    }
    return a;
}

static inline VEC OP(lift)(VEC a, VEC t)
{
    EACH_REGISTER
        a.v[i] = (REGISTER)((WORDS)a.v[i] + ((WORDS)t.v[i] << MANTISSA));
    return a;
}
#undef JOIN_
#undef JOIN
#undef OP
#undef REGISTER
#undef WORDS
#undef EACH_REGISTER
