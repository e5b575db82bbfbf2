/* The end of the process, or of its Python. */
#ifndef OPTPLUG_END_H
#define OPTPLUG_END_H

/* Let no new call begin, and wait for those that run, two seconds at the most.  It is to come before torch's
 * own destructors, and before Python takes the optimizers' state along, which no step must meet. */
void end_calls(void);

#endif
