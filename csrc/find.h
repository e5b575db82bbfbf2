/* Which Python a host that is no Python itself should start. */
#ifndef OPTPLUG_FIND_H
#define OPTPLUG_FIND_H

#include <limits.h>

struct environment {
    char library[PATH_MAX]; /* this liboptplug, links resolved */
    char site[PATH_MAX];    /* the folder that the package optplug lies in; "" if there is none */
    char python[PATH_MAX];  /* the interpreter of the environment to use */
    char base[PATH_MAX];    /* the installation that it stands on: base/lib/python3.X */
};

/* Fill in `library` and `site`. */
int find_library(struct environment *found);

/* Find the interpreter that `chosen` names, by its own path or by its environment's folder; 0 if there is
 * none. */
int find_interpreter(const char *chosen, char python[PATH_MAX]);

/* Fill in `python` and `base`: `wanted` if it is given, else $OPTPLUG_PYTHON, else the one recorded at the
 * build, if that was not pip's, else the environment that liboptplug lies in. */
int find_python(struct environment *found, const char *wanted);

/* Open the libpython of that environment, for all to see; NULL with an error recorded. */
void *find_libpython(const struct environment *found);

/* Open again, for all to see, a libpython that the process has already; NULL if it has none. */
void *find_loaded_libpython(void);

#endif
