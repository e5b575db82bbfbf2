/* Train a network that reads handwritten digits, with any optimizer of PyTorch and no other library.
 *
 *     digits ["AdamW(lr=2e-3)" [digits.csv [losses.csv]]]
 *
 * The network and its gradients, in digits.h, are this program's own.  optplug does one thing: opt_step turns
 * gradients into better weights. */
#define _POSIX_C_SOURCE 200809L
#include <time.h>
#include <unistd.h>

#include <optplug.h>

#include "digits.h"

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Every call of optplug returns a negative number for an error, and opt_error() says which. */
static int check(int result)
{
    if (result < 0) {
        fprintf(stderr, "digits: %s\n", opt_error());
        exit(1);
    }
    return result;
}

int main(int argc, char **argv)
{
    const char *spec = argc > 1 ? argv[1] : "AdamW(lr=2e-3)";
    load_digits(argc > 2 ? argv[2] : "examples/data/digits.csv");
    FILE *losses = argc > 3 ? fopen(argv[3], "w") : NULL;
    if (losses)
        fprintf(losses, "epoch,training loss,test accuracy in %%\n");

    draw_weights();
    int opt = check(opt_create(spec));
    check(opt_bind(opt, "w1", "float32", HIDDEN * PIXELS, w1, dw1));
    check(opt_bind(opt, "b1", "float32", HIDDEN, b1, db1));
    check(opt_bind(opt, "w2", "float32", CLASSES * HIDDEN, w2, dw2));
    check(opt_bind(opt, "b2", "float32", CLASSES, b2, db2));

    int steps = 0, terminal = isatty(STDOUT_FILENO);
    double start = seconds(), in_opt_step = 0, accuracy = 0;
    for (int epoch = 1; epoch <= EPOCHS; epoch++) {
        shuffle();
        double loss = 0;
        for (int first = 0; first + BATCH <= n_train; first += BATCH, steps++) {
            loss += batch(first, 0, 1) / (n_train / BATCH);
            double before = seconds();
            check(opt_step(opt));
            in_opt_step += seconds() - before;
        }
        accuracy = test_accuracy();
        printf("%sepoch %2d of %d   loss %.4f   test accuracy %.2f %%%s", terminal ? "\r" : "", epoch, EPOCHS,
               loss, accuracy, terminal && epoch < EPOCHS ? "" : "\n");
        fflush(stdout);
        if (losses)
            fprintf(losses, "%d,%.6f,%.4f\n", epoch, loss, accuracy);
    }
    printf("%s: %.2f %% of %d test images are read right\n", spec, accuracy, n_test);
    printf("a step took %.1f us, %.1f us of it in opt_step (%d steps)\n", 1e6 * (seconds() - start) / steps,
           1e6 * in_opt_step / steps, steps);
    check(opt_free(opt));
    if (losses)
        fclose(losses);
    return 0;
}
