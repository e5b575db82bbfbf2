/* A host that closes the library and opens it again, as MATLAB's unloadlibrary does, finds it running. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void *library;

static void open_library(void)
{
    library = dlopen(getenv("OPTPLUG_TEST_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
}

static int step(int opt) { return ((int (*)(int))dlsym(library, "opt_step"))(opt); }

int main(void)
{
    double w[] = {1}, dw[] = {1};
    open_library();
#ifndef __APPLE__
    /* It stays even where no Python holds it yet: it is linked with -z nodelete. */
    dlclose(library);
    if (!dlopen(getenv("OPTPLUG_TEST_LIBRARY"), RTLD_NOW | RTLD_NOLOAD))
        return 5;
    open_library();
#endif
    int opt = ((int (*)(const char *))dlsym(library, "opt_create"))("SGD(lr=1)");
    int (*bind)(int, const char *, const char *, int64_t, void *, void *) =
        (int (*)(int, const char *, const char *, int64_t, void *, void *))dlsym(library, "opt_bind");
    if (opt <= 0 || bind(opt, "w", "float64", 1, w, dw) != 0 || step(opt) != 0)
        return 2;
    for (int i = 0; i < 3; i++) {
        dlclose(library);
        open_library();
        if (step(opt) != 0)
            return 3;
    }
    return w[0] == -3 ? 0 : 4;
}
