/* A host's BLAS must not be torch's as well: where its integers have 64 bits, as in MATLAB's and in
 * libopenblas64, torch's first matrix product would end the process, and another's sums round otherwise.
 * RTLD_DEEPBIND lets torch find its own libraries first.  musl has none; macOS needs none, where each library
 * has its functions from those that it was linked with.
 *
 * But that has torch call libc's free on what the host's allocator has given, where that is not libc's own.
 * So such a host shares its BLAS with torch, if it can.
 *
 * A host that is linked to LibTorch has torch's libraries, and its executable may have the one copy of some of
 * their objects, such as the tensor that is none: torch must find those, and the BLAS is LibTorch's already. */
#define _GNU_SOURCE
#include "apart.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "optplug.h"
#include "variable.h"

static char blas[512];       /* the file of the host's; "" for none */
static char libtorch[512];   /* the file of torch's own functions, where the host has them; "" for none */
static char allocator[512];  /* the file of a function that is not where it usually is; "" for none */
static const char *function; /* that one's name */
static int is_apart;

#ifdef RTLD_DEEPBIND
enum { CAN_KEEP_APART = 1 };
#else
enum { CAN_KEEP_APART = 0 };
#endif

/* Get the file in which torch would find a function; "" if there is none. */
static void find_file(const char *name, char file[512])
{
    Dl_info info;
    void *address = dlsym(RTLD_DEFAULT, name);
    snprintf(file, 512, "%s", address && dladdr(address, &info) && info.dli_fname ? info.dli_fname : "");
}

static int is_usual(const char *file)
{
    static const char *const usual[] = {"libc.", "libc-", "ld-musl", "libstdc++.", "libc++"};
    const char *slash = strrchr(file, '/');
    const char *name = slash ? slash + 1 : file;
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (strncmp(name, usual[i], strlen(usual[i])) == 0)
            return 1;
    return 0;
}

/* Look for an allocator in the process that is neither the C library's nor C++'s. */
static void find_allocator(void)
{
    static const char *const names[] = {
        "malloc",
        "free",
        "calloc",
        "realloc",
        "memalign",
        "aligned_alloc",
        "posix_memalign",
        "_Znwm",
        "_Znam",
        "_ZdlPv",
        "_ZdaPv",
        "_ZdlPvm",
        "_ZdaPvm",
        "_ZnwmRKSt9nothrow_t",
        "_ZnwmSt11align_val_t",
        "_ZdlPvSt11align_val_t", /* C++'s operators new and delete */
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *name = names[i];
        find_file(name, allocator);
        if (*allocator && !is_usual(allocator)) {
            function = name[0] != '_' ? name : name[2] == 'n' ? "operator new" : "operator delete";
            return;
        }
    }
    allocator[0] = '\0';
}

/* Ask for the sum of one number, with a count that is 1 to a BLAS of 32-bit integers and negative to one of
 * 64, which all answer by 0. */
static int has_64_bit_integers(void)
{
    double (*sum)(const int64_t *n, const double *x, const int64_t *step) =
        (double (*)(const int64_t *, const double *, const int64_t *))dlsym(RTLD_DEFAULT, "dasum_");
    const int64_t n = INT64_MIN + 1, step = 1;
    const double x = 1;
    return sum && sum(&n, &x, &step) == 0;
}

int apart_decide(void)
{
#ifdef __APPLE__
    return 0;
#endif
    const char *wish = CAN_KEEP_APART ? variable_get("OPTPLUG_DEEPBIND") : "0";
    find_file("dgemm_", blas);
    find_file("aoti_torch_device_type_cpu", libtorch);
    find_allocator();
    is_apart = *blas && (!wish || !*wish ? !*allocator && !*libtorch : strcmp(wish, "0") != 0);
    int is_own = *blas && strcmp(blas, libtorch) != 0; /* LibTorch's must not run before torch's import */
    if (!CAN_KEEP_APART && is_own && has_64_bit_integers())
        return fail(OPT_ESTART,
                    "the host's BLAS in '%.200s' uses 64-bit integers, which PyTorch cannot use, and this C "
                    "library cannot load PyTorch apart from it: link the program without it",
                    blas);
    if (is_apart || !is_own || (wish && *wish) || !has_64_bit_integers())
        return is_apart;
    if (*libtorch)
        return fail(OPT_ESTART,
                    "the host's BLAS in '%.200s' uses 64-bit integers, which PyTorch cannot use, and the "
                    "program is linked to LibTorch in '%.200s', so PyTorch cannot be loaded apart from it: "
                    "link the program to a BLAS of 32-bit integers",
                    blas, libtorch);
    return fail(OPT_ESTART,
                "the host's BLAS in '%.200s' uses 64-bit integers, which PyTorch cannot use, and "
                "'%.200s' replaces %s, so PyTorch cannot be loaded apart from it: leave out one of them, "
                "or set OPTPLUG_DEEPBIND=1 if that one passes on to the C library's",
                blas, allocator, function);
}

const char *apart_libtorch(void) { return libtorch; }

void apart_describe(char *text, size_t size)
{
    int used = 0;
    text[0] = '\0';
    if (*allocator)
        used = snprintf(text, size, "allocator: %s in %s\n", function, allocator);
    if (*libtorch)
        used += snprintf(text + used, size - (size_t)used, "libtorch: the host's, %s\n", libtorch);
    if (*blas && is_apart)
        snprintf(text + used, size - (size_t)used, "blas: PyTorch's own, kept apart from %s\n", blas);
    else if (*blas && strcmp(blas, libtorch) != 0)
        snprintf(text + used, size - (size_t)used, "blas: the host's, %s\n", blas);
}
