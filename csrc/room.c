#define _GNU_SOURCE
#include "room.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "signals.h"

/* There is no asking: how many the user and the container have, in all processes, is counted elsewhere.
 * So we make them, all at once, as torch's OpenMP would, which ends the process where it cannot. */
struct crowd {
    pthread_mutex_t door; /* held until all of them are there */
};

struct member {
    struct crowd *crowd;
    pthread_t thread;
    long number; /* the kernel's; 0 until it is there */
};

static void *wait_at_door(void *of)
{
    struct member *member = of;
#ifdef __linux__
    member->number = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(&member->crowd->door);
    pthread_mutex_unlock(&member->crowd->door);
    return NULL;
}

/* A thread that has been joined still counts for a moment. */
static void wait_until_gone(long number)
{
#ifdef __linux__
    for (int i = 0; i < 1000 && syscall(SYS_tgkill, getpid(), number, 0) == 0; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000}, NULL);
#else
    (void)number;
#endif
}

int room_for_threads(int wanted)
{
    struct member *members = wanted > 0 ? calloc((size_t)wanted, sizeof *members) : NULL;
    struct crowd crowd = {.door = PTHREAD_MUTEX_INITIALIZER};
    int count = 0;
    if (!members)
        return 0;
    pthread_mutex_lock(&crowd.door);
    for (; count < wanted; count++) {
        members[count].crowd = &crowd;
        if (signals_make_thread(&members[count].thread, wait_at_door, &members[count]) != 0)
            break;
    }
    pthread_mutex_unlock(&crowd.door);
    for (int i = 0; i < count; i++)
        pthread_join(members[i].thread, NULL);
    for (int i = 0; i < count; i++)
        wait_until_gone(members[i].number);
    free(members);
    return count;
}

static int has_number(const char *path)
{
    long number;
    FILE *file = fopen(path, "re");
    int has = file && fscanf(file, "%ld", &number) == 1;
    if (file)
        fclose(file);
    return has;
}

/* Tell whether the container has a limit: where there is none, "max" stands there. */
static int is_contained(void)
{
    static _Atomic int known; /* 1: yes, -1: no */
    if (!known)
        known = has_number("/sys/fs/cgroup/pids.max") || has_number("/sys/fs/cgroup/pids/pids.max") ? 1 : -1;
    return known > 0;
}

/* Return how many threads all processes have, and so this user at the most; -1 if that is not told. */
static long threads_of_all(void)
{
    long count = -1;
    FILE *file = fopen("/proc/loadavg", "re");
    if (file && fscanf(file, "%*s %*s %*s %*d/%ld", &count) != 1)
        count = -1;
    if (file)
        fclose(file);
    return count;
}

int room_is_plenty(int wanted)
{
    struct rlimit memory, threads;
    if (getrlimit(RLIMIT_AS, &memory) != 0 || memory.rlim_cur != RLIM_INFINITY ||
        getrlimit(RLIMIT_NPROC, &threads) != 0 || is_contained())
        return 0;
    if (threads.rlim_cur == RLIM_INFINITY || geteuid() == 0)
        return 1;
    long others = threads_of_all();
    return others >= 0 && threads.rlim_cur > (rlim_t)(others + wanted + 100);
}
