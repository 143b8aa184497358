/* pool.h: the thread pool behind `sparsec_parallel` (see sparsec.h).
 *
 * One pool for the whole process.  Any number of threads may run regions (parallel loops) at once;
 * every caller works on its own region, so a region ends even when no worker has time for it.
 *
 * A region deals its pieces out in one contiguous range per thread and lets threads that are done
 * steal from the others: most claims then touch a cache line of their own, and consecutive regions
 * of a model run find their tile in the cache of the same core.
 *
 * Workers that run out of work watch the pool for a short while and then sleep in the kernel.  They
 * neither spin nor are woken up when callers and awake workers already fill the cores.
 */
#ifndef SPARSEC_POOL_H
#define SPARSEC_POOL_H

#include <stdint.h>

#include "sparsec.h"

/* More threads than this in one region are never used. */
#define SPARSEC_POOL_MAX_THREADS 256

/* Regions that can be shared with workers at once; further callers run theirs alone. */
#define SPARSEC_POOL_MAX_REGIONS 64

/* How long a thread watches for work before it sleeps, unless configured otherwise. */
#define SPARSEC_POOL_SPIN_NS 100000

/* Sets what the pool may assume: `cores` that this process can use at once, and for how long a
 * thread spins (0: never).  Callable at any time. */
void sparsec_pool_configure(int32_t cores, int64_t spin_ns);

/* Makes `team` a handle for regions of up to `threads` threads, the caller included.  It owns
 * nothing, never changes afterwards, and may be used by many callers at once.  Workers are started
 * by the first region that wants them. */
void sparsec_team_init(sparsec_parallel *team, int32_t threads);

/* Brackets a run of a model, with or without regions in it, so that the pool knows how many cores
 * are taken by callers. */
void sparsec_pool_enter(void);
void sparsec_pool_leave(void);

/* Workers that exist at the moment. */
int32_t sparsec_pool_workers(void);

/* Counts the forks between this process and the one that first used the pool. */
uint32_t sparsec_pool_generation(void);

/* Ends and joins all workers; the next region starts new ones.  Not callable from a task. */
void sparsec_pool_stop(void);

#endif
