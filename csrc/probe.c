/* A C host that starts optplug and says what it got: how `python -m optplug doctor` sees what a
 * program that is no Python would get. */
#include <stdio.h>

#include "optplug.h"

int main(void)
{
    int status = opt_init(NULL);
    if (status < 0)
        printf("error: %s\n", opt_error());
    const char *text = opt_describe(0);
    printf("%s", text ? text : "");
    return status < 0;
}
