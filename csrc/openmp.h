/* OpenMP as torch uses it, which may be the host's as well: its thread count, and where it puts threads. */
#ifndef OPTPLUG_OPENMP_H
#define OPTPLUG_OPENMP_H

#include <stdint.h>

/* Look for OpenMP in a library, or with RTLD_DEFAULT in the process. */
void openmp_find(void *where);

/* Return this thread's count; 0 where there is no OpenMP. */
int openmp_threads(void);

/* Set it, only where there is one. */
void openmp_set_threads(int count);

/* The same, but to one, and return 0, where so many threads cannot be made, since GCC's OpenMP then ends the
 * process. */
int openmp_use_threads(int count);

/* Tell whether this thread is in a parallel region, where torch makes none of its own. */
int openmp_in_parallel(void);

/* Call a function in all threads of this thread's team, with the number of each and how many they are; in this
 * one alone where there is no team. */
void openmp_run(void (*function)(void *data, int thread, int threads), void *data);

/* Return where a thread's share of n values begins, and set its end, as torch has it: its last bits may go by
 * it.  See at::parallel_for and TensorIterator. */
int64_t openmp_share(int64_t n, int thread, int threads, int64_t *end);

/* Let OpenMP start in this thread, before anything else lets it, without moving the thread to other
 * processors: where OMP_PROC_BIND, OMP_PLACES or the like is set, a thread's first region would. */
void openmp_meet_thread(void);

/* The processors that this thread may run on. */
struct affinity {
    unsigned long mask[8192 / 8 / sizeof(long)]; /* as many as Linux can have */
    long size;                                   /* of what the kernel has filled in; not positive: nothing */
};
void affinity_save(struct affinity *saved);
void affinity_restore(const struct affinity *saved);
int affinity_count(const struct affinity *saved);

#endif
