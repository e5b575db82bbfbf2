/* @NAME@ fits a curve to points with an optimizer of PyTorch's:
 *
 *     build/@NAME@                        by Adam
 *     build/@NAME@ "RMSprop(lr=0.01)"     by another one, without compiling again
 *
 * Put your simulation and its gradient in place of loss_and_gradient. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <optplug.h>

enum { POINTS = 20, STEPS = 1000 };

/* The mean square of w[0] exp(-w[1] t) - y over points of 2 exp(-0.5 t), and its gradient. */
static double loss_and_gradient(const double w[2], double dw[2])
{
    double loss = 0;
    dw[0] = dw[1] = 0;
    for (int i = 0; i < POINTS; i++) {
        double t = 0.2 * i, decay = exp(-w[1] * t), error = w[0] * decay - 2 * exp(-0.5 * t);
        loss += error * error / POINTS;
        dw[0] += 2 * error * decay / POINTS;
        dw[1] -= 2 * error * w[0] * t * decay / POINTS;
    }
    return loss;
}

/* End with what went wrong, if anything did. */
static int check(int result)
{
    if (result < 0) {
        fprintf(stderr, "%s\n", opt_error());
        exit(EXIT_FAILURE);
    }
    return result;
}

int main(int argc, char **argv)
{
    double w[2] = {1, 1}, dw[2], loss;

    int opt = check(opt_create(argc > 1 ? argv[1] : "Adam(lr=0.05)"));
    check(opt_bind(opt, "w", "float64", 2, w, dw));
    check(opt_schedule(opt, "CosineAnnealingLR(T_max=1000)"));
    for (int i = 0; i < STEPS; i++) {
        loss = loss_and_gradient(w, dw);
        if (i % 100 == 0)
            printf("%4d  loss %.3e  w %.6f %.6f\n", i, loss, w[0], w[1]);
        check(opt_step(opt));
        check(opt_schedule_step(opt));
    }
    printf("%4d  loss %.3e  w %.6f %.6f\n", STEPS, loss_and_gradient(w, dw), w[0], w[1]);
    check(opt_free(opt));
    return 0;
}
