/* The public functions on the library itself, and on what this thread has been told. */
#include "optplug.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "call.h"
#include "callback.h"
#include "error.h"
#include "handle.h"
#include "log.h"
#include "plan.h"
#include "start.h"

/* Find `python='path'` among "name=value, name=value": copy the path, and blank the item out of the
 * options, since Python, which reads the rest, is not there yet. */
static int take_python(char *options, char *path, size_t size)
{
    path[0] = '\0';
    for (char *item = options; *item;) {
        int before_value = 0;
        sscanf(item, " python = %n", &before_value);
        char *value = item + before_value;
        size_t length = strcspn(value, ",'\"");
        char quote = value[length] == ',' ? '\0' : value[length];
        char *end = quote ? strchr(value + length + 1, quote) : value + length;
        if (!end)
            return fail(OPT_EINVAL, "options '%.400s': a quote is not closed", options);
        if (before_value > 0) {
            if (!quote || length > 0 || (size_t)(end - value) > size)
                return fail(OPT_EINVAL,
                            "options '%.400s': python must be a quoted path, as in "
                            "python='/opt/env/bin/python3'",
                            options);
            memcpy(path, value + 1, (size_t)(end - value - 1));
            path[end - value - 1] = '\0';
            end++;
            end += strspn(end, " ,");
            memset(item, ' ', (size_t)(end - item));
        } else if (*end)
            end++;
        item = end;
    }
    return OPT_OK;
}

API(init)
int opt_init(const char *options)
{
    enum { MOST = 10000 };
    if (options && strnlen(options, MOST + 1) > MOST)
        return fail(OPT_EINVAL, "options is longer than %d characters: '%.60s...'", MOST, options);
    char *rest = strdup(options ? options : "");
    if (!rest)
        return fail(OPT_ENOMEM, "out of memory");
    char python[PATH_MAX];
    struct shield saved;
    int status = take_python(rest, python, sizeof python);
    if (status == OPT_OK)
        status = call_start(&saved, python);
    if (status == OPT_OK)
        status = call_leave(&saved, runtime.python->configure(rest));
    free(rest);
    return status;
}

API(log)
int opt_log(opt_log_function function, void *user)
{
    struct shield saved;
    call_enter(&saved); /* which lets go of a Python host's lock, if the function before waits for that */
    int status = log_set_function(function, user);
    shield_leave(&saved);
    return status;
}

static const char *describe_library(void)
{
    struct shield saved;
    call_enter(&saved);
    char lines[3 * PATH_MAX];
    int result = callback_room();
    if (result == OPT_OK && start_describe(lines, sizeof lines))
        result = runtime.python->describe_library(lines);
    else if (result == OPT_OK) {
        text_set(lines);
        result = 1;
    }
    return call_text(call_leave(&saved, result));
}

API(describe)
const char *opt_describe(int opt)
{
    if (opt == 0)
        return describe_library();
    struct call call;
    int status = call_begin(&call, opt, CALL_DESCRIBE);
    return call_text(status < 0
                         ? status
                         : call_end(&call, runtime.python->describe(opt, plan_way(handle_plan(call.slot)))));
}

API(list)
const char *opt_list(const char *kind)
{
    if (!kind)
        return fail(OPT_EINVAL, "kind must not be NULL"), NULL;
    struct shield saved;
    int status = call_start(&saved, NULL);
    return call_text(status < 0 ? status : call_leave(&saved, runtime.python->list(kind)));
}

API(version)
const char *opt_version(void) { return OPTPLUG_VERSION; }

/* ---- when something goes wrong ---- */

API(error)
const char *opt_error(void) { return error_message(); }

API(error_status)
int opt_error_status(void) { return error_status(); }

API(warning)
const char *opt_warning(void) { return warning_take(); }

API(traceback)
const char *opt_traceback(void) { return error_traceback(); }
