#define _GNU_SOURCE
#include "openmp.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bridge.h"
#include "room.h"

static int (*_Atomic get_threads)(void); /* omp_get_max_threads and omp_set_num_threads, or NULL */
static void (*_Atomic set_threads)(int);
static int (*_Atomic get_place)(void); /* omp_get_place_num */
static int (*_Atomic in_parallel)(void);
/* What GCC's compiler calls for a parallel region; LLVM's and Intel's OpenMP have it, too. */
static void (*_Atomic parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);
static int (*_Atomic thread_number)(void); /* in a region: omp_get_thread_num, and how many there are */
static int (*_Atomic team_size)(void);

void openmp_find(void *where)
{
    void *get = dlsym(where, "omp_get_max_threads");
    void *set = dlsym(where, "omp_set_num_threads");
    set_threads = (void (*)(int))set;
    get_place = (int (*)(void))dlsym(where, "omp_get_place_num");
    in_parallel = (int (*)(void))dlsym(where, "omp_in_parallel");
    parallel = (void (*)(void (*)(void *), void *, unsigned, unsigned))dlsym(where, "GOMP_parallel");
    thread_number = (int (*)(void))dlsym(where, "omp_get_thread_num");
    team_size = (int (*)(void))dlsym(where, "omp_get_num_threads");
    get_threads = set ? (int (*)(void))get : NULL;
}

/* Load explicitly: calling through the atomic makes gcc emit a plain read. */
int openmp_threads(void)
{
    int (*get)(void) = atomic_load(&get_threads);
    return get ? get() : 0;
}

void openmp_set_threads(int count)
{
    void (*set)(int) = atomic_load(&set_threads);
    set(count);
}

int openmp_in_parallel(void)
{
    int (*in)(void) = atomic_load(&in_parallel);
    return in && in();
}

void openmp_meet_thread(void)
{
    int (*place)(void) = atomic_load(&get_place);
    if (!place)
        return;
    struct affinity hosts;
    affinity_save(&hosts);
    openmp_threads(); /* LLVM's binds a thread that it sees for the first time */
    place();          /* GCC's one that asks for its place */
    affinity_restore(&hosts);
}

/* How many threads this thread's OpenMP can have, and cannot. */
static _Thread_local struct {
    int granted, refused;
} this_thread;

static void do_nothing(void *unused) { (void)unused; }

/* Have OpenMP make its threads now, if there is room for them.  One thread of the host's after the other,
 * since two would find the same room. */
static int make_threads(int count)
{
    static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;
    void (*region)(void (*)(void *), void *, unsigned, unsigned) = atomic_load(&parallel);
    pthread_mutex_lock(&making);
    int has_room = room_for_threads(count - 1) == count - 1;
    if (has_room && region)
        region(do_nothing, NULL, (unsigned)count, 0);
    pthread_mutex_unlock(&making);
    return has_room;
}

/* Return how many threads OpenMP may use of `count`: all, or one where they cannot be made, since GCC's then
 * ends the process.  What it has once made for this thread it keeps. */
static int affordable(int count)
{
    if (count <= this_thread.granted || count <= 1 || openmp_in_parallel())
        return count;
    if (count == this_thread.refused || (!room_is_plenty(count - 1) && !make_threads(count))) {
        this_thread.refused = count;
        return 1;
    }
    this_thread.granted = count;
    return count;
}

int openmp_use_threads(int count)
{
    int used = affordable(count);
    openmp_set_threads(used);
    return used == count;
}

struct share {
    void (*function)(void *data, int thread, int threads);
    void *data;
};

static void run_share(void *data)
{
    const struct share *share = data;
    int (*number)(void) = atomic_load(&thread_number);
    int (*size)(void) = atomic_load(&team_size);
    share->function(share->data, number(), size());
}

void openmp_run(void (*function)(void *data, int thread, int threads), void *data)
{
    void (*region)(void (*)(void *), void *, unsigned, unsigned) = atomic_load(&parallel);
    int count = openmp_threads();
    struct share share = {function, data};
    if (count > 1 && region && atomic_load(&thread_number) && atomic_load(&team_size) &&
        !openmp_in_parallel())
        region(run_share, &share, (unsigned)count, 0);
    else
        function(data, 0, 1);
}

int64_t openmp_share(int64_t n, int thread, int threads, int64_t *end)
{
    const int64_t most = (n + WORTH_THREADS - 1) / WORTH_THREADS, count = threads < most ? threads : most;
    const int64_t share = count > 0 ? (n + count - 1) / count : 0;
    const int64_t begin = share * thread < n ? share * thread : n;
    *end = begin + share < n ? begin + share : n;
    return begin;
}

/* ---- processors ---- */

#ifdef __linux__
/* Not the C library's function, which wants to know how many processors there can be. */
void affinity_save(struct affinity *saved)
{
    saved->size = syscall(SYS_sched_getaffinity, 0, sizeof saved->mask, saved->mask);
}

void affinity_restore(const struct affinity *saved)
{
    struct affinity now;
    affinity_save(&now);
    if (saved->size > 0 && now.size == saved->size && memcmp(now.mask, saved->mask, (size_t)now.size) != 0)
        syscall(SYS_sched_setaffinity, 0, saved->size, saved->mask);
}

int affinity_count(const struct affinity *saved)
{
    int count = 0;
    for (size_t i = 0; i < (size_t)(saved->size > 0 ? saved->size : 0) / sizeof saved->mask[0]; i++)
        count += __builtin_popcountl(saved->mask[i]);
    return count > 0 ? count : 1;
}
#else
void affinity_save(struct affinity *saved) { saved->size = 0; }
void affinity_restore(const struct affinity *saved) { (void)saved; }

int affinity_count(const struct affinity *saved)
{
    (void)saved;
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}
#endif
