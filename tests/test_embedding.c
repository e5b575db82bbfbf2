/* A host that embeds a Python of its own, which it keeps to itself (RTLD_LOCAL), and calls us with the
 * interpreter's lock held and without. */
#include <dlfcn.h>

#include "check.h"

static void *python;

static void *function(const char *name)
{
    void *found = dlsym(python, name);
    CHECK(found != NULL);
    return found;
}

int main(void)
{
    python = dlopen(getenv("OPTPLUG_TEST_LIBPYTHON"), RTLD_NOW | RTLD_LOCAL);
    if (!python) {
        printf("skipped: %s\n", dlerror());
        return 77;
    }
    ((void (*)(int))function("Py_InitializeEx"))(0);
    int (*has_lock)(void) = (int (*)(void))function("PyGILState_Check");
    CHECK(has_lock());
    check_one_step();
    CHECK(has_lock());
    CHECK_FAILS(OPT_EINVAL, "'Adm'", opt_create("Adm()"));
    CHECK(has_lock());
    void *thread = ((void *(*)(void))function("PyEval_SaveThread"))();
    check_one_step();
    CHECK(!has_lock());
    ((void (*)(void *))function("PyEval_RestoreThread"))(thread);
    CHECK(strstr(opt_describe(0), "python started by: the host"));
    return 0;
}
