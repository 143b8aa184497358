/* op_vectors.h: vectors of the width that the target has. */
#ifndef SPARSEC_OP_VECTORS_H
#define SPARSEC_OP_VECTORS_H

/* One vector register of the target, as a compiler's vector type. */
#if defined(__AVX512F__)
#define OP_VECTOR_BYTES 64
#elif defined(__AVX__)
#define OP_VECTOR_BYTES 32
#else
#define OP_VECTOR_BYTES 16
#endif

typedef float op_vf32 __attribute__((vector_size(OP_VECTOR_BYTES)));
typedef double op_vf64 __attribute__((vector_size(OP_VECTOR_BYTES)));
typedef int32_t op_mf32 __attribute__((vector_size(OP_VECTOR_BYTES))); /* what comparisons give */
typedef int64_t op_mf64 __attribute__((vector_size(OP_VECTOR_BYTES)));
enum { OP_LANES_f32 = OP_VECTOR_BYTES / 4, OP_LANES_f64 = OP_VECTOR_BYTES / 8 };

/* a * b + c, in one rounding where the target has that. */
#if defined(__AVX512F__)
static inline op_vf32 op_fma_vf32(op_vf32 a, op_vf32 b, op_vf32 c) { return _mm512_fmadd_ps(a, b, c); }
static inline op_vf64 op_fma_vf64(op_vf64 a, op_vf64 b, op_vf64 c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__FMA__)
static inline op_vf32 op_fma_vf32(op_vf32 a, op_vf32 b, op_vf32 c) { return _mm256_fmadd_ps(a, b, c); }
static inline op_vf64 op_fma_vf64(op_vf64 a, op_vf64 b, op_vf64 c) { return _mm256_fmadd_pd(a, b, c); }
#else
static inline op_vf32 op_fma_vf32(op_vf32 a, op_vf32 b, op_vf32 c) { return c + a * b; }
static inline op_vf64 op_fma_vf64(op_vf64 a, op_vf64 b, op_vf64 c) { return c + a * b; }
#endif
static inline op_vf32 op_set1_vf32(float a) { return a - (op_vf32){0}; }
static inline op_vf64 op_set1_vf64(double a) { return a - (op_vf64){0}; }

#endif
