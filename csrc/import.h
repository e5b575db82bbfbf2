/* The import of torch and of optplug's Python, in a Python that runs. */
#ifndef OPTPLUG_IMPORT_H
#define OPTPLUG_IMPORT_H

struct environment;

/* Import optplug._bridge, which attaches itself, having seen to what torch would end the process without.
 * Call with the GIL; `processors` are those that this thread may run on.  With `is_final` it cannot be tried
 * again in this process, since torch's libraries are there in part. */
int import_bridge(struct environment *environment, int processors, int *is_final);

#endif
