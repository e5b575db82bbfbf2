/* Environment variables, which a privileged process does not trust. */
#ifndef OPTPLUG_VARIABLE_H
#define OPTPLUG_VARIABLE_H

/* Tell whether this process runs with rights that its caller does not have (set-uid, set-gid, capabilities).
 * Nothing that the caller has set, its environment above all, may then choose the code that runs. */
int variable_is_distrusted(void);

/* Return an environment variable; NULL if it is not set, or not to be trusted. */
const char *variable_get(const char *name);

#endif
