/* A host for the tests that vary what is around it: it gives its arguments to opt_init, makes one step, says
 * "stepped" or each status and error, and in any case lives to the end. */
#include <stdio.h>

#include <optplug.h>

int main(int argc, char **argv)
{
    double w[] = {1, 2}, dw[] = {2, 4};
    int status = OPT_OK;
    for (int i = 1; i < argc; i++) {
        status = opt_init(argv[i]);
        if (status < 0)
            printf("%d %s\n", status, opt_error());
    }
    int opt = status < 0 ? status : opt_create("SGD(lr=0.5)");
    if (opt < 0 || opt_bind(opt, "w", "float64", 2, w, dw) < 0 || opt_step(opt) < 0 || w[0] != 0)
        printf("%d %s\n", opt, opt_error());
    else
        printf("stepped\n%s", opt_describe(0));
    return 0;
}
