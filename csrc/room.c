#define _GNU_SOURCE
#include "room.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

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
    sigset_t all, hosts;
    if (!members)
        return 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &hosts); /* theirs: the host's signals are for its own threads */
    pthread_mutex_lock(&crowd.door);
    for (; count < wanted; count++) {
        members[count].crowd = &crowd;
        if (pthread_create(&members[count].thread, NULL, wait_at_door, &members[count]) != 0)
            break;
    }
    pthread_mutex_unlock(&crowd.door);
    for (int i = 0; i < count; i++)
        pthread_join(members[i].thread, NULL);
    for (int i = 0; i < count; i++)
        wait_until_gone(members[i].number);
    pthread_sigmask(SIG_SETMASK, &hosts, NULL);
    free(members);
    return count;
}
