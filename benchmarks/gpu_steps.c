/* optplug, from C, on arrays of a GPU. */
#define _GNU_SOURCE
#include <optplug.h>

#include "gpu.h"

static int opt;

static void check(int status)
{
    if (status < 0) {
        fprintf(stderr, "%s\n%s\n", opt_error(), opt_traceback());
        exit(1);
    }
}

static int setup(const char *name, int count, long size)
{
    if (!make_arrays(count, size))
        return 0;
    char spec[96];
    snprintf(spec, sizeof spec, "%s(lr=0.001)", name);
    check(opt = opt_create(spec));
    for (int i = 0; i < count; i++) {
        char parameter[16];
        snprintf(parameter, sizeof parameter, "%d", i);
        int64_t shape[] = {size};
        check(opt_bind_nd(opt, parameter, "float32", "cuda:0", 1, shape, data[i], NULL, grad[i], NULL));
    }
    for (int i = 0; i < 3; i++)
        step();
    return 1;
}

static void step(void) { check(opt_step(opt)); }

static void teardown(void)
{
    check(opt_free(opt));
    free_arrays();
}
