/* The public functions that save an optimizer and load it. */
#include "optplug.h"

#include "api.h"
#include "call.h"
#include "error.h"

API(checkpoint)
int opt_checkpoint(int opt, const char *options)
{
    if (!options)
        return fail(OPT_EINVAL, "options must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_CHECKPOINT);
    return status < 0 ? status : call_end(&call, runtime.python->checkpoint(opt, options));
}

API(attribute)
int opt_attribute(int opt, const char *name, const char *text)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_ATTRIBUTE);
    return status < 0 ? status : call_end(&call, runtime.python->attribute(opt, name, text));
}

API(attribute_get)
const char *opt_attribute_get(int opt, const char *name)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL"), NULL;
    struct call call;
    int status = call_begin(&call, opt, CALL_ATTRIBUTE_GET);
    return call_text(status < 0 ? status : call_end(&call, runtime.python->attribute_get(opt, name)));
}

API(save)
int opt_save(int opt, const char *path)
{
    if (!path)
        return fail(OPT_EINVAL, "path must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_SAVE);
    return status < 0 ? status : call_end(&call, runtime.python->save(opt, path));
}

API(load)
int opt_load(int opt, const char *path)
{
    if (!path)
        return fail(OPT_EINVAL, "path must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_LOAD);
    return status < 0 ? status : call_end(&call, runtime.python->load(opt, path));
}

API(save_memory)
int64_t opt_save_memory(int opt, void *buffer, int64_t size)
{
    if (buffer && size <= 0)
        return fail(OPT_EINVAL, "size must be positive, got %lld", (long long)size);
    struct call call;
    int status = call_begin(&call, opt, CALL_SAVE);
    int64_t written;
    if (status == OPT_OK)
        status = call_end(&call, runtime.python->save_memory(opt, buffer, size, &written));
    return status < 0 ? status : written;
}

API(load_memory)
int opt_load_memory(int opt, const void *buffer, int64_t size)
{
    if (!buffer)
        return fail(OPT_EINVAL, "buffer must not be NULL");
    if (size <= 0)
        return fail(OPT_EINVAL, "size must be positive, got %lld", (long long)size);
    struct call call;
    int status = call_begin(&call, opt, CALL_LOAD);
    return status < 0 ? status : call_end(&call, runtime.python->load_memory(opt, buffer, size));
}
