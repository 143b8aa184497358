/* tiles_amx.h: tiles.h with Intel's instructions.
 *
 * Not by the compilers' intrinsics: GCC 12 takes _tile_loadconfig for a reader of 8 bytes, so that stores of
 * the rest of the configuration vanish, and _tile_loadd for one that reads no memory. */
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux saves tiles for a process that has asked for them, once for all of its threads; forks inherit it.
 * Returns 0, or what is wrong as in errno. */
static inline int tiles_request(void)
{
    const int request_permission = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    return syscall(SYS_arch_prctl, request_permission, tile_data) ? errno : 0;
}

SPARSEC_INLINE void tiles_configure(const tile_config *config)
{
    __asm__ volatile("ldtilecfg %0" : : "m"(*config) : "memory");
}

SPARSEC_INLINE void tiles_release(void) { __asm__ volatile("tilerelease" : : : "memory"); }

/* Operands are written backwards: the sums last, the second factor first. */
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define TILE_LOAD(t, p, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(t, p, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define TILE_DOT(c, w, x) __asm__ volatile("tdpbsud %%tmm" #x ", %%tmm" #w ", %%tmm" #c : :)
#define TILE_DOT_BF16(c, w, x) __asm__ volatile("tdpbf16ps %%tmm" #x ", %%tmm" #w ", %%tmm" #c : :)
