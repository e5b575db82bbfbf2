#include "end.h"

#include "handle.h"
#include "runtime.h"

void end_calls(void)
{
    runtime.ended = 1;
    handle_wait_for_all(2);
}
