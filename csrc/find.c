#define _GNU_SOURCE
#include "find.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __APPLE__
#include <mach-o/dyld.h>
#else
#include <link.h>
#endif

#include "error.h"
#include "log.h"
#include "optplug.h"
#include "variable.h"

#ifdef __APPLE__
#define SONAME "libpython" PYTHON_VERSION ".dylib"
#else
#define SONAME "libpython" PYTHON_VERSION ".so.1.0"
#endif

/* Join three strings into a path; 0 if it is too long to be one. */
static int join(char *path, const char *a, const char *b, const char *c)
{
    return snprintf(path, PATH_MAX, "%s%s%s", a, b, c) < PATH_MAX;
}

static int exists(const char *a, const char *b, const char *c)
{
    char path[PATH_MAX];
    return join(path, a, b, c) && access(path, F_OK) == 0;
}

/* Cut the last name off a path, in place; 0 if nothing is left. */
static int parent(char *path)
{
    char *slash = strrchr(path, '/');
    if (!slash)
        return 0;
    *slash = '\0';
    return slash != path;
}

int find_library(struct environment *found)
{
    Dl_info info;
    if (!dladdr((void *)(intptr_t)find_library, &info) || !realpath(info.dli_fname, found->library))
        return fail(OPT_ESTART, "liboptplug cannot find its own file");
    /* site/optplug/lib/liboptplug.so */
    strcpy(found->site, found->library);
    for (int i = 0; i < 3; i++)
        parent(found->site);
    if (!exists(found->site, "/optplug/_bridge.py", ""))
        found->site[0] = '\0';
    return OPT_OK;
}

/* Climb from the library to the first folder with an interpreter of our version in its bin. */
static int find_around(struct environment *found)
{
    char folder[PATH_MAX];
    strcpy(folder, found->library);
    while (parent(folder))
        if (exists(folder, "/bin/python" PYTHON_VERSION, ""))
            return join(found->python, folder, "/bin/python" PYTHON_VERSION, "");
    return 0;
}

/* Read one value, "home" say, of an environment's pyvenv.cfg; 0 if it is not there. */
static int read_pyvenv(const char *folder, const char *key, char *value)
{
    char path[PATH_MAX], line[PATH_MAX + 64];
    FILE *file = join(path, folder, "/pyvenv.cfg", "") ? fopen(path, "re") : NULL;
    int known = 0;
    size_t n = strlen(key);
    while (file && !known && fgets(line, sizeof line, file)) {
        char *c = line + n;
        if (strncmp(line, key, n) != 0)
            continue;
        c += strspn(c, " \t");
        if (*c++ != '=')
            continue;
        c += strspn(c, " \t");
        for (size_t end = strlen(c); end > 0 && isspace((unsigned char)c[end - 1]); end--)
            c[end - 1] = '\0';
        known = join(value, c, "", "");
    }
    if (file)
        fclose(file);
    return known;
}

/* Tell whether a path ends in python, python3 or python3.X, with the X that is ours. */
static int is_python_name(const char *path)
{
    const char *name = strrchr(path, '/');
    name = name ? name + 1 : path;
    return strcmp(name, "python") == 0 || strcmp(name, "python3") == 0 ||
           strcmp(name, "python" PYTHON_VERSION) == 0;
}

enum { MOST_NESTED = 8 }; /* environments */

/* Fill in `base` from `python`, and make sure that a standard library of our version is there: without
 * it Python would print a page to stderr before it gave up. */
static int find_base(struct environment *found, const char *source)
{
    char folder[PATH_MAX], file[PATH_MAX], version[PATH_MAX];
    strcpy(folder, found->python);
    if (!realpath(found->python, file))
        return fail(OPT_ESTART, "%s: '%.500s' cannot be resolved to a file", source, found->python);
    if (!parent(folder) || !parent(folder) || !read_pyvenv(folder, "home", found->base)) {
        strcpy(found->base, file);
        parent(found->base);
    } else if (read_pyvenv(folder, "version", version) &&
               strncmp(version, PYTHON_VERSION ".", strlen(PYTHON_VERSION) + 1) != 0)
        return fail(OPT_ESTART,
                    "%s: '%.400s' is Python %.20s, and this liboptplug was built for Python " PYTHON_VERSION
                    ": install optplug in that environment and link to the one there",
                    source, found->python, version);
    if (!parent(found->base))
        found->base[0] = '\0';
    /* With Python 3.10 an environment that another one's Python has made names that one's bin as its home. */
    for (int i = 0; i < MOST_NESTED && read_pyvenv(found->base, "home", folder); i++) {
        strcpy(found->base, folder);
        if (!parent(found->base))
            found->base[0] = '\0';
    }
    if (is_python_name(file) &&
        (exists(found->base, "/lib/python" PYTHON_VERSION "/encodings/__init__.py", "") ||
         exists(found->base, "/lib64/python" PYTHON_VERSION "/encodings/__init__.py", ""))) {
        log_line(LOG_INFO, "Python: '%.500s' (%s)", found->python, source);
        return OPT_OK;
    }
    const char *name = strrchr(file, '/');
    if ((name && strcmp(name, "/python" PYTHON_VERSION "t") == 0) ||
        (is_python_name(file) &&
         exists(found->base, "/lib/python" PYTHON_VERSION "t/encodings/__init__.py", "")))
        return fail(OPT_ESTART,
                    "%s: '%.400s' is a free-threaded Python, which optplug does not support: use one with "
                    "the global interpreter lock",
                    source, found->python);
    return fail(
        OPT_ESTART,
        "%s: '%.300s' is not Python " PYTHON_VERSION ", for which this liboptplug was built (looked for "
        "'%.300s/lib/python" PYTHON_VERSION "'): name the interpreter itself, not a script that starts it",
        source, found->python, found->base);
}

int find_interpreter(const char *chosen, char python[PATH_MAX])
{
    struct stat file;
    const char *const names[] = {"/bin/python" PYTHON_VERSION, "/bin/python3"};
    if (stat(chosen, &file) != 0 || !S_ISDIR(file.st_mode))
        return join(python, chosen, "", "") && access(python, X_OK) == 0;
    char folder[PATH_MAX];
    if (!join(folder, chosen, "", ""))
        return 0;
    for (size_t end = strlen(folder); end > 1 && folder[end - 1] == '/'; end--)
        folder[end - 1] = '\0';
    for (int i = 0; i < 2; i++)
        if (join(python, folder, names[i], "") && access(python, X_OK) == 0)
            return 1;
    return 0;
}

int find_python(struct environment *found, const char *wanted)
{
    const char *source = "python";
    const char *chosen = wanted;
    if (!chosen || !*chosen) {
        source = "OPTPLUG_PYTHON";
        chosen = variable_get("OPTPLUG_PYTHON");
    }
    if (chosen && *chosen) {
        if (!find_interpreter(chosen, found->python))
            return fail(OPT_ESTART, "%s: '%.500s' is neither an environment's folder nor its bin/python3",
                        source, chosen);
        return find_base(found, source);
    }
#ifdef RECORDED_PYTHON
    if (access(RECORDED_PYTHON, X_OK) == 0 && join(found->python, RECORDED_PYTHON, "", ""))
        return find_base(found, "the Python that optplug was built for");
#endif
    if (find_around(found))
        return find_base(found, "the environment of liboptplug");
    return fail(OPT_ESTART,
                "'%.500s' is not in an environment of Python " PYTHON_VERSION ": set OPTPLUG_PYTHON to the "
                "bin/python3 of the one where optplug is installed",
                found->library);
}

void *find_libpython(const struct environment *found)
{
    const char *wanted = variable_get("OPTPLUG_LIBPYTHON");
    void *library = NULL;
    if (wanted && *wanted) {
        library = dlopen(wanted, RTLD_NOW | RTLD_GLOBAL);
        if (!library)
            fail(OPT_ESTART, "OPTPLUG_LIBPYTHON: %s", dlerror());
        return library;
    }
    /* By its full path first, which no LD_LIBRARY_PATH can change; then where the system has it. */
    const char *folders[] = {"/lib/", "/lib64/"};
    char path[PATH_MAX];
    char reason[512] = "";
    for (int i = 0; i < 2 && !library; i++)
        if (exists(found->base, folders[i], SONAME) && join(path, found->base, folders[i], SONAME)) {
            dlerror(); /* what was said before */
            library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
            const char *said = library ? NULL : dlerror();
            snprintf(reason, sizeof reason, "%s", said ? said : "");
        }
    if (!library)
        library = dlopen(SONAME, RTLD_NOW | RTLD_GLOBAL);
    if (!library && *reason) { /* it is there: no files are left to the process, no memory, ... */
        fail(OPT_ESTART, "the libpython of '%.300s' cannot be loaded: %s", found->python, reason);
        return NULL;
    }
    if (!library)
        fail(OPT_ESTART,
             "no " SONAME
             " for '%.300s', neither in '%.300s/lib' nor where the system looks: install it (Debian and "
             "Ubuntu: apt-get install libpython" PYTHON_VERSION
             "; pyenv: build with --enable-shared), or set "
             "OPTPLUG_LIBPYTHON to its path",
             found->python, found->base);
    return library;
}

#ifdef __APPLE__
void *find_loaded_libpython(void)
{
    /* python.org's and Homebrew's is a framework. */
    static const char *const names[] = {"libpython3", "/Python.framework/Versions/" PYTHON_VERSION "/Python"};
    for (uint32_t i = 0; i < _dyld_image_count(); i++) {
        const char *name = _dyld_get_image_name(i);
        if (name && (strstr(name, names[0]) || strstr(name, names[1])))
            return dlopen(name, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    }
    return NULL;
}
#else
static int copy_libpython_name(struct dl_phdr_info *info, size_t size, void *path)
{
    (void)size;
    if (!info->dlpi_name || !strstr(info->dlpi_name, "libpython3"))
        return 0;
    /* libpython3.so is the stable ABI's forwarder, and has no interpreter in it. */
    return !strstr(info->dlpi_name, "libpython3.so") && join(path, info->dlpi_name, "", "");
}

void *find_loaded_libpython(void)
{
    char path[PATH_MAX];
    return dl_iterate_phdr(copy_libpython_name, path) ? dlopen(path, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD)
                                                      : NULL;
}
#endif
