/* Train the network of digits.c on many ranks, each with a part of every batch, with any optimizer of PyTorch.
 *
 *     mpiexec -n 4 digits_ranks ["AdamW(lr=2e-3)" [digits.csv [losses.csv]]]
 *
 * All ranks have all weights, and shuffle alike.  Each computes what its images give to the gradient;
 * opt_step adds these up, steps a part of the weights on each rank, and lets all have the whole. */
#include <optplug_mpi.h>

#include "digits.h"

static int rank, ranks;

/* A rank that leaves would keep the others waiting: end them all. */
static int check(int result)
{
    if (result < 0) {
        fprintf(stderr, "digits_ranks: %s\n", opt_error());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    return result;
}

int main(int argc, char **argv)
{
    const char *spec = argc > 1 ? argv[1] : "AdamW(lr=2e-3)";
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    load_digits(argc > 2 ? argv[2] : "examples/data/digits.csv");
    FILE *losses = argc > 3 && rank == 0 ? fopen(argv[3], "w") : NULL;
    if (losses)
        fprintf(losses, "epoch,training loss,test accuracy in %%\n");
    draw_weights();

    check(opt_init("num_threads=1")); /* a rank has a core */
    int opt = check(opt_create(spec));
    check(opt_distribute_mpi(opt, "Replicate(), Partial('sum')", MPI_COMM_WORLD));
    check(opt_bind(opt, "w1", "float32", HIDDEN * PIXELS, w1, dw1));
    check(opt_bind(opt, "b1", "float32", HIDDEN, b1, db1));
    check(opt_bind(opt, "w2", "float32", CLASSES * HIDDEN, w2, dw2));
    check(opt_bind(opt, "b2", "float32", CLASSES, b2, db2));

    int steps = 0;
    double start = MPI_Wtime(), in_opt_step = 0, accuracy = 0;
    for (int epoch = 1; epoch <= EPOCHS; epoch++) {
        shuffle();
        double mine = 0, loss;
        for (int first = 0; first + BATCH <= n_train; first += BATCH, steps++) {
            mine += batch(first, rank, ranks) / (n_train / BATCH);
            double before = MPI_Wtime();
            check(opt_step(opt));
            in_opt_step += MPI_Wtime() - before;
        }
        accuracy = test_accuracy();
        MPI_Reduce(&mine, &loss, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
        if (rank == 0)
            printf("epoch %2d of %d   loss %.4f   test accuracy %.2f %%\n", epoch, EPOCHS, loss, accuracy);
        if (losses)
            fprintf(losses, "%d,%.12g,%.4f\n", epoch, loss, accuracy);
    }
    if (rank == 0) {
        printf("%s on %d ranks: %.2f %% of %d test images are read right\n", spec, ranks, accuracy, n_test);
        printf("a step took %.1f us, %.1f us of it in opt_step (%d steps)\n",
               1e6 * (MPI_Wtime() - start) / steps, 1e6 * in_opt_step / steps, steps);
    }
    check(opt_free(opt));
    if (losses)
        fclose(losses);
    return MPI_Finalize() != MPI_SUCCESS;
}
