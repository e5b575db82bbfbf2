/* The end of the process while another thread starts Python: that thread is stopped first. */
#ifndef OPTPLUG_EARLY_END_H
#define OPTPLUG_EARLY_END_H

/* Begin to watch, in the thread that is about to start Python.  Where the process ends, `give_up` is called
 * at once, and `stop_python` as soon as Python runs: it is to hold up that thread for good. */
void early_end_watch(void (*give_up)(void), void (*stop_python)(void));

/* Note that Python runs, or that it is about to import a module. */
void early_end_python_runs(void);
void early_end_imports(const char *module);

/* Note that the start is over. */
void early_end_unwatch(void);

#endif
