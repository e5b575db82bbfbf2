/* Hosts in bad surroundings: limits, a folder that is gone, processors and signals that are the host's
 * business, messages in another encoding.  Each is a process of its own, which starts Python. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <libintl.h>
#include <locale.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "check.h"

enum { MANY = 100000 }; /* values, which torch steps by all threads */

/* Run a function in a process of its own, which must live to its end, and print nothing. */
static void run_apart(const char *name, void (*function)(void))
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        int file = check_quiet();
        function();
        check_was_quiet(file);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (status)
        fprintf(stderr, "%s ended with status 0x%x\n", name, status);
    CHECK(status == 0);
}

#define apart(function) run_apart(#function, (function))

static void step_many(void)
{
    static _Thread_local float w[MANY], dw[MANY];
    int opt = opt_create("Adam()");
    CHECK(opt > 0 && opt_bind(opt, "w", "float32", MANY, w, dw) == OPT_OK);
    for (int i = 0; i < 4; i++)
        CHECK(opt_step(opt) == OPT_OK);
    CHECK(opt_free(opt) == OPT_OK);
}

static void on_another_thread(void *(*function)(void *))
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, function, NULL) == 0 && pthread_join(thread, NULL) == 0);
}

/* ---- the working directory ---- */

static void delete_the_folder(void)
{
    char folder[] = "/tmp/optplug-gone-XXXXXX";
    CHECK(mkdtemp(folder) && chdir(folder) == 0 && rmdir(folder) == 0);
}

static void a_deleted_folder_is_an_error_until_there_is_another(void)
{
    delete_the_folder();
    CHECK_FAILS(OPT_ESTART, "the working directory has been deleted", opt_init(NULL));
    CHECK_FAILS(OPT_ESTART, "the working directory has been deleted", opt_create("Adam()"));
    CHECK(chdir("/tmp") == 0);
}

/* ---- processors ---- */

static cpu_set_t processors(void)
{
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
    return set;
}

static cpu_set_t hosts;

static void *step_and_compare(void *unused)
{
    cpu_set_t set;
    step_many();
    set = processors();
    CHECK(CPU_EQUAL(&set, &hosts));
    return unused;
}

static void *init_and_compare(void *unused)
{
    cpu_set_t set;
    CHECK(opt_init(NULL) == OPT_OK);
    set = processors();
    CHECK(CPU_EQUAL(&set, &hosts));
    return step_and_compare(unused);
}

/* OpenMP binds the thread that loads it, and each other one that steps. */
static void processors_are_the_hosts(void)
{
    hosts = processors();
    init_and_compare(NULL);
    on_another_thread(step_and_compare);
    step_and_compare(NULL);
}

static void threads_are_put_in_places(void)
{
    setenv("OMP_PROC_BIND", "true", 1);
    setenv("OMP_PLACES", "threads", 1);
    processors_are_the_hosts();
}

static void threads_are_put_on_processors(void)
{
    setenv("GOMP_CPU_AFFINITY", "0-64", 1);
    hosts = processors();
    on_another_thread(init_and_compare);
    step_and_compare(NULL);
}

/* ---- signals ---- */

static void handler(int number) { (void)number; }

static _Atomic int is_started;

/* Install the host's handlers as soon as Python has taken SIGINT, which is in the middle of the start. */
static void *install_handlers(void *unused)
{
    struct sigaction now = {.sa_handler = SIG_DFL};
    while (!is_started && now.sa_handler == SIG_DFL) {
        usleep(1000);
        sigaction(SIGINT, NULL, &now);
    }
    CHECK(!is_started);
    signal(SIGTERM, handler);
    signal(SIGUSR1, SIG_IGN);
    return unused;
}

static void handlers_of_another_thread_stay(void)
{
    pthread_t thread;
    struct sigaction now;
    CHECK(pthread_create(&thread, NULL, install_handlers, NULL) == 0);
    CHECK(opt_init(NULL) == OPT_OK);
    is_started = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(sigaction(SIGTERM, NULL, &now) == 0 && now.sa_handler == handler);
    CHECK(sigaction(SIGUSR1, NULL, &now) == 0 && now.sa_handler == SIG_IGN);
    CHECK(sigaction(SIGINT, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
}

/* ---- limits ---- */

static rlim_t limit;

static void little_memory_is_an_error(void)
{
    CHECK(setrlimit(RLIMIT_AS, &(struct rlimit){limit, limit}) == 0);
    CHECK(opt_init(NULL) == OPT_ESTART);
    CHECK(strstr(opt_error(), "ulimit -v") && strstr(opt_error(), "MiB") && !strchr(opt_error(), '\n'));
    CHECK_FAILS(OPT_ESTART, "ulimit -v", opt_create("Adam()"));
}

static void without_a_file_to_be_opened_there_is_an_error_until_there_is_one(void)
{
    struct rlimit most;
    CHECK(opt_version()); /* the library itself is open */
    int next = dup(STDIN_FILENO);
    CHECK(close(next) == 0 && getrlimit(RLIMIT_NOFILE, &most) == 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &(struct rlimit){(rlim_t)next, most.rlim_max}) == 0);
    CHECK_FAILS(OPT_ESTART, "cannot be loaded: ", opt_init(NULL));
    CHECK(setrlimit(RLIMIT_NOFILE, &most) == 0);
}

static size_t address_space(void)
{
    size_t pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%zu", &pages) == 1 && fclose(file) == 0);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static int opt;
static int most_threads;
static pthread_barrier_t gate;

static void *step_after_the_gate(void *unused)
{
    pthread_barrier_wait(&gate);
    for (int i = 0; i < 4; i++)
        CHECK(opt_step(opt) == OPT_OK);
    const char *text = opt_describe(0);
    if (text && most_threads > 1) /* there may be no memory for it */
        CHECK(!strstr(text, "\nthreads: 1\n") ==
              !strstr(text, "\none thread because: the calling thread cannot create others"));
    return unused;
}

/* OpenMP makes threads for each one of the host's that steps: there is room for a few. */
static void threads_for_which_no_others_can_be_made_step_alone(void)
{
    static float w[MANY], dw[MANY];
    enum { THREADS = 24 };
    pthread_t threads[THREADS];
    opt = opt_create("Adam()");
    CHECK(opt > 0 && opt_bind(opt, "w", "float32", MANY, w, dw) == OPT_OK);
    for (int i = 0; i < 4; i++)
        CHECK(opt_step(opt) == OPT_OK);
    most_threads = atoi(strstr(opt_describe(0), "\nthreads: ") + 10);
    CHECK(pthread_barrier_init(&gate, NULL, THREADS + 1) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, step_after_the_gate, NULL) == 0);
    rlim_t most = (rlim_t)address_space() + (20 << 20);
    CHECK(setrlimit(RLIMIT_AS, &(struct rlimit){most, most}) == 0);
    pthread_barrier_wait(&gate);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

/* ---- messages ---- */

struct text {
    uint32_t length, offset;
};

/* Write a catalog of the C library's messages in Latin-1 (https://www.gnu.org/software/gettext/manual:
 * "The Format of GNU MO Files"); the originals are sorted. */
static void write_catalog(const char *path)
{
    static const char *const messages[][2] = {
        {"", "Content-Type: text/plain; charset=ISO-8859-1\n"},
        {"No such file or directory", "gibt es nicht: \xFC"},
        {"cannot open shared object file", "kann nicht ge\xF6"
                                           "ffnet werden"},
        {"undefined symbol", "unbekanntes Symbol: \xFC"},
    };
    enum { COUNT = sizeof messages / sizeof *messages };
    struct {
        uint32_t magic, revision, count, originals, translations, hash_size, hash;
        struct text table[2][COUNT];
        char texts[512];
    } file = {0x950412DE, 0, COUNT, 28, 28 + 8 * COUNT, 0, 28 + 16 * COUNT, {{{0, 0}}}, ""};
    uint32_t used = 0;
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < COUNT; i++) {
            uint32_t n = (uint32_t)strlen(messages[i][which]);
            memcpy(file.texts + used, messages[i][which], n + 1);
            file.table[which][i] = (struct text){n, (uint32_t)offsetof(__typeof__(file), texts) + used};
            used += n + 1;
        }
    FILE *f = fopen(path, "w");
    CHECK(f && fwrite(&file, sizeof file, 1, f) == 1 && fclose(f) == 0);
}

/* And all else that one start shows, which succeeds after two that have not. */
static void messages_in_latin_1_do_not_matter(void)
{
    char folder[] = "/tmp/optplug-locale-XXXXXX", path[128];
    CHECK(mkdtemp(folder));
    const char *const parts[] = {"/xx", "/xx/LC_MESSAGES"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s%s", folder, parts[i]);
        CHECK(mkdir(path, 0700) == 0);
    }
    snprintf(path, sizeof path, "%s/xx/LC_MESSAGES/libc.mo", folder);
    write_catalog(path);
    setenv("LANGUAGE", "xx", 1);
    CHECK(setlocale(LC_ALL, "C.UTF-8") && bindtextdomain("libc", folder));
    CHECK(bind_textdomain_codeset("libc", "ISO-8859-1"));
    CHECK(!dlopen("libnowhere.so", RTLD_NOW));
    const char *said = dlerror();
    CHECK(said && strstr(said, "ge\xF6"
                               "ffnet"));

    without_a_file_to_be_opened_there_is_an_error_until_there_is_one();
    a_deleted_folder_is_an_error_until_there_is_another();
    handlers_of_another_thread_stay();
    check_one_step();
    int number = opt_create("Adam()");
    CHECK_FAILS(OPT_EIO, "gibt es nicht: ?", opt_load(number, "/nowhere/run.pt"));
    CHECK(unlink(path) == 0);
    for (int i = 1; i >= 0; i--) {
        snprintf(path, sizeof path, "%s%s", folder, parts[i]);
        CHECK(rmdir(path) == 0);
    }
    CHECK(rmdir(folder) == 0);
    delete_the_folder();
    step_many();
    if (access("/proc/self/statm", R_OK) == 0)
        threads_for_which_no_others_can_be_made_step_alone();
}

int main(void)
{
    cpu_set_t set = processors();
    if (CPU_COUNT(&set) > 1) { /* else there is nothing to narrow */
        apart(threads_are_put_in_places);
        apart(threads_are_put_on_processors);
    }
    for (limit = 50 << 20; limit < 650 << 20; limit += 75 << 20)
        apart(little_memory_is_an_error);
    apart(messages_in_latin_1_do_not_matter);
    return 0;
}
