/* Children of fork, in which the optimizers go on. */
#ifndef OPTPLUG_FORK_H
#define OPTPLUG_FORK_H

/* Keep our locks, and Python's where it is ours, in order in every fork from now on. */
void fork_watch(void);

#endif
