/* THE rule: is element i of a mask kept?  Scalar, complete, and the only definition in C.
 *
 * A mask is a value (seed, stream, shape, p).  Element `index` (the flat C-order position in the mask's own shape) owns
 * a 32-bit uniform number U made of four bytes, and is kept when U < T:
 *
 *     T     = round((1 - p) * 2**32), half to even                                     0 .. 2**32
 *     U     = b0 << 24 | b1 << 16 | b2 << 8 | b3
 *     b_tag = byte (index & 3) of word ((index >> 6) & 3) of philox(call, tag)
 *     call  = (index >> 8) * 16 + ((index >> 2) & 15)                                  < 2**60
 *     philox(call, tag) = Philox4x32-10 (Salmon et al., SC 2011) with
 *         counter = (call mod 2**32, call >> 32 | tag << 28, stream mod 2**32, stream >> 32)
 *         key     = (seed mod 2**32, seed >> 32)
 *
 * Why so: one call makes one byte for each of 16 elements, so a decision costs 8 random bits.  The next byte matters only
 * where this one equals T's own ("a tie": once in 256), yet the keep probability is exact to 2**-32.  The layout
 *
 *     256 elements of a block:   word 0: elements   0 ..  63     lane l of a word = 4 consecutive elements
 *                                word 1: elements  64 .. 127     16 lanes of a word = 64 consecutive elements
 *                                word 2: elements 128 .. 191     -> one 64-byte compare gives 64 keep bits in order
 *                                word 3: elements 192 .. 255
 *
 * needs no shuffle on any vector width, and gives a CUDA thread (one lane) four groups of 4 consecutive elements.
 *
 * Tags 0 to 3 are the four bytes of U.  Tags 4 to 15 are free for other draws; write each use down here.
 * This is stream version 1.  A change of any bit of it is version 2 and keeps version 1 callable.
 */
#ifndef FASTDROP_STREAM_H
#define FASTDROP_STREAM_H

#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "the kernels take words of bits for bytes of bits: on this machine use the NumPy or Numba backend"
#endif

#define FD_STREAM_VERSION 1

enum { FD_BLOCK = 256 };  /* elements that 16 calls decide */

#define FD_M0 0xD2511F53u
#define FD_M1 0xCD9E8D57u
#define FD_W0 0x9E3779B9u
#define FD_W1 0xBB67AE85u

/* Philox4x32-10: counter in `c`, replaced by the four output words. */
static inline void fd_philox(uint32_t c[4], uint32_t k0, uint32_t k1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)FD_M0 * c[0], b = (uint64_t)FD_M1 * c[2];
        c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
        c[1] = (uint32_t)b;
        c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[3] = (uint32_t)a;
        k0 += FD_W0;
        k1 += FD_W1;
    }
}

/* Byte `tag` (0..3) of U(index). */
static inline uint32_t fd_byte(uint64_t seed, uint64_t stream, uint64_t index, uint32_t tag)
{
    uint64_t call = (index >> 8) * 16 + ((index >> 2) & 15);
    uint32_t c[4] = {(uint32_t)call, (uint32_t)(call >> 32) | tag << 28, (uint32_t)stream, (uint32_t)(stream >> 32)};
    fd_philox(c, (uint32_t)seed, (uint32_t)(seed >> 32));
    return c[(index >> 6) & 3] >> (8 * (index & 3)) & 255;
}

static inline uint32_t fd_uniform32(uint64_t seed, uint64_t stream, uint64_t index)
{
    return fd_byte(seed, stream, index, 0) << 24 | fd_byte(seed, stream, index, 1) << 16
         | fd_byte(seed, stream, index, 2) << 8 | fd_byte(seed, stream, index, 3);
}

static inline int fd_keep(uint64_t seed, uint64_t stream, uint64_t index, uint64_t threshold)
{
    return fd_uniform32(seed, stream, index) < threshold;
}

/* p is the probability to drop.  It becomes these two numbers here and nowhere else in C.
 * T is the same in every rounding mode: 1 - p as a double is a multiple of 2**-53, so here it is an integer; what is done in
 * floating point is exact. */
static inline uint64_t fd_threshold(double p)
{
    if (!(p < 1))
        return 0;
    if (!(p > 0))
        return UINT64_C(1) << 32;
    const double p53 = p * 0x1p53;
    const uint64_t whole = (uint64_t)p53;
    const double rest = p53 - (double)whole;
    const uint64_t kept = (UINT64_C(1) << 53) - whole - (rest > 0.5 || (rest == 0.5 && whole & 1));
    return (kept + (1 << 20) - 1 + (kept >> 21 & 1)) >> 21;
}

static inline double fd_scale(double p)
{
    return 1.0 / (1.0 - p);  /* inf at p = 1, where nothing is kept and so nothing is scaled */
}

#endif
