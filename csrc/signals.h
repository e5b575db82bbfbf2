/* The host's signal handlers, which Python must not take. */
#ifndef OPTPLUG_SIGNALS_H
#define OPTPLUG_SIGNALS_H

#include <pthread.h>
#include <signal.h>

/* `python` is the address of any function of Python's, by which its handlers are known. */

/* Put down what the process does about each signal, and put back later what Python has changed of it. */
void signals_save(struct sigaction actions[NSIG]);
void signals_restore(const struct sigaction actions[NSIG], const void *python);

/* Make a thread that gets none of the host's signals, which are for the host's own; as pthread_create. */
int signals_make_thread(pthread_t *thread, void *(*function)(void *), void *argument);

/* Tell whether the calling thread is the process's first. */
int signals_is_main_thread(void);

/* Let an interrupt (SIGINT) that is Python's to handle wait until it is released; 0 if there is none to
 * hold: the handler is not Python's, or this is not the main thread. */
int signals_hold(struct sigaction *hosts, const void *python);
void signals_release(const struct sigaction *hosts);

/* Let signals_release raise an interrupt that came before signals_hold, and that Python has noticed since. */
void signals_note_interrupt(void);

#endif
