/* main returns while another thread makes the first call: the process ends with its own status, whatever that
 * thread is at. */
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"

enum { STATUS = 3, MOMENTS = 5 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *start(void *unused)
{
    opt_init(NULL);
    return unused;
}

static int pipe_of_child[2];

static void say_goodbye(void) { CHECK(write(pipe_of_child[1], "!", 1) == 1); }

/* Be a process of its own that ends so many seconds after another thread has begun the start; if negative,
 * when that is done. */
static void end_after(double seconds)
{
    pthread_t thread;
    alarm(300); /* what hangs ends here */
    atexit(say_goodbye);
    CHECK(pthread_create(&thread, NULL, start, NULL) == 0);
    if (seconds < 0)
        CHECK(pthread_join(thread, NULL) == 0);
    else
        usleep((useconds_t)(1e6 * seconds));
    exit(STATUS);
}

/* Tell whether such a process ends as it wants to. */
static int ends(double seconds)
{
    char word = 0;
    int status;
    CHECK(pipe(pipe_of_child) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        end_after(seconds);
    CHECK(waitpid(child, &status, 0) == child);
    close(pipe_of_child[1]);
    int said_goodbye =
        read(pipe_of_child[0], &word, 1) == 1 && word == '!'; /* what the host has registered ran */
    close(pipe_of_child[0]);
    return WIFEXITED(status) && WEXITSTATUS(status) == STATUS && said_goodbye;
}

int main(void)
{
    int quiet = check_quiet();
    double begin = now();
    CHECK(ends(-1));
    double whole = now() - begin;
    /* On a busy machine the thread that keeps us last may not get to run for some milliseconds, in which an
     * end is too early; unwatched, about half of these are. */
    int lost = 0;
    for (int i = 0; i < MOMENTS; i++)
        lost += !ends(whole * i / MOMENTS);
    CHECK(lost <= 1);
    if (lost == 0) /* one that is too early may say so, by torch or C++ */
        check_was_quiet(quiet);
    return 0;
}
