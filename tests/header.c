/* The header, included first and twice, needs nothing before it. */
#include <optplug.h>

int header_compiles(void);

int header_compiles(void) { return OPT_OK; }
