/* What the C tests share: checks that say where they failed, and a shield against output. */
#ifndef CHECK_H
#define CHECK_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <optplug.h>

/* Sanitizers have an allocator of their own, which keeps what is freed, fails otherwise where memory runs
 * out, and does not come whole out of a fork in which other threads allocate. */
#if defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CHECK_SANITIZED 1
#endif
#endif
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define CHECK_SANITIZED 1
#endif
#ifndef CHECK_SANITIZED
#define CHECK_SANITIZED 0
#endif

/* Where failures are told, even while stderr is watched: one for all files of a program. */
__attribute__((weak)) FILE *check_log;

#define CHECK(condition) ((condition) ? (void)0 : check_failed(__FILE__, __LINE__, #condition))

/* Check that a call fails with a status, and that the one line of opt_error() has these words in it. */
#define CHECK_FAILS(status, words, call) check_fails(__FILE__, __LINE__, #call, (status), (words), (call))

static inline void check_failed(const char *file, int line, const char *what)
{
    FILE *log = check_log ? check_log : stderr;
    fprintf(log, "%s:%d: this is false: %s\n  opt_error(): '%s'\n%s\n", file, line, what, opt_error(),
            opt_traceback());
    fflush(log);
    _exit(1);
}

static inline void check_fails(const char *file, int line, const char *what, int status, const char *words,
                               int result)
{
    if (result != status || opt_error_status() != status || !strstr(opt_error(), words) ||
        strchr(opt_error(), '\n')) {
        FILE *log = check_log ? check_log : stderr;
        fprintf(log,
                "%s:%d: %s\n  returned %d, not %d, or opt_error_status() is %d, or its message lacks '%s'\n",
                file, line, what, result, status, opt_error_status(), words);
        check_failed(file, line, what);
    }
}

/* Create an optimizer, step it once, and free it: one of SGD's, whose numbers are worked out by hand. */
static inline void check_one_step(void)
{
    double w[] = {1, 2}, dw[] = {2, 4};
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt > 0);
    CHECK(opt_bind(opt, "w", "float64", 2, w, dw) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(w[0] == 0 && w[1] == 0);
    CHECK(opt_free(opt) == OPT_OK);
}

/* Let stdout and stderr go into a file from now on; check_was_quiet checks that it stayed empty. */
static inline int check_quiet(void)
{
    check_log = fdopen(dup(STDERR_FILENO), "w");
    char path[] = "/tmp/optplug-quiet-XXXXXX";
    int file = mkstemp(path);
    CHECK(file >= 0 && unlink(path) == 0);
    CHECK(dup2(file, STDOUT_FILENO) >= 0 && dup2(file, STDERR_FILENO) >= 0);
    return file;
}

static inline void check_was_quiet(int file)
{
    char text[256] = "";
    CHECK(pread(file, text, sizeof text - 1, 0) >= 0);
    if (text[0])
        fprintf(check_log, "printed: %s\n", text);
    CHECK(!text[0]);
}

#endif
