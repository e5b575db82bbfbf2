#include "runtime.h"

#include "error.h"
#include "optplug.h"
#include "pyapi.h"

struct runtime runtime = {.load_lock = PTHREAD_MUTEX_INITIALIZER, .start_lock = PTHREAD_MUTEX_INITIALIZER};

int runtime_is_up(void) { return runtime.started && !runtime.ended && pyapi_runs(); }

int runtime_check(void)
{
    if (runtime_is_up())
        return OPT_OK;
    return runtime.started ? fail(OPT_ESTATE, "Python has ended in this process, and its optimizers with it")
                           : fail(OPT_ESTATE, "Python is not started: opt_init or opt_create does that");
}
