/* ops.h: what the general kernels are made of; included after rt.h.
 *
 *   op_<name>_<type>   one element of a core op, with the meaning of its numpy reference and without
 *                      undefined behaviour for any operand
 *   op_*_run_<type>    a contiguous run of elements
 *   op_*_block_<type>  register blocks of matrix products
 *
 * Types: f32 f64 i64 i32 i16 i8 u64 u32 u16 u8.  Booleans are uint8_t holding 0 or 1.  The float32
 * functions have no branches and no calls, so that loops around them vectorize.  They rely on IEEE
 * arithmetic: do not compile with -ffast-math.
 */
#ifndef SPARSEC_OPS_H
#define SPARSEC_OPS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "op_parallel.h"
#include "op_arithmetic.h"
#include "op_math.h"
#include "op_quantize.h"
#include "op_vectors.h"
#include "op_index.h"
#include "op_reduce.h"
#include "op_gemm.h"
#include "op_convolution.h"
#include "op_integer_gemm.h"

#endif
