/* What a step and a clip over ranks take, by Python and without: the least of many, and an all_gather of MPI's own.
 *
 *     mpicc -O2 benchmarks/ranks.c $(python -m optplug config --cflags --libs) -o ranks
 *     mpiexec -n 2 ./ranks */
#include <stdio.h>

#include <optplug_mpi.h>

enum { MOST = 100000 };

static double w[MOST], dw[MOST];

static int check(int result)
{
    if (result < 0) {
        fprintf(stderr, "ranks: %s\n", opt_error());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    return result;
}

static int step(int opt) { return opt_step(opt); }

static int clip(int opt) { return opt_clip_grad_norm(opt, 1, 2, 0, NULL); }

static int clip_and_step(int opt)
{
    int status = clip(opt);
    return status < 0 ? status : step(opt);
}

static int gather(int opt)
{
    static double all[1024];
    double mine = opt;
    return MPI_Allgather(&mine, 1, MPI_DOUBLE, all, 1, MPI_DOUBLE, MPI_COMM_WORLD) == MPI_SUCCESS ? 0 : -1;
}

/* The least that a call takes, in microseconds. */
static double least(int (*call)(int), int opt, int times)
{
    double best = 1;
    for (int i = 0; i < times; i++) {
        double start = MPI_Wtime();
        check(call(opt));
        double took = MPI_Wtime() - start;
        best = took < best ? took : best;
    }
    return 1e6 * best;
}

static double measure(int (*call)(int), const char *placement, int n)
{
    int opt = check(opt_create("Adam(lr=0.1)"));
    check(opt_distribute_mpi(opt, placement, MPI_COMM_WORLD));
    check(opt_bind(opt, "w", "float64", n, w, dw));
    for (int i = 0; i < 4; i++) { /* after which it is known how they go without Python */
        check(step(opt));
        check(clip(opt));
    }
    double found = least(call, opt, n < MOST ? 3000 : 300);
    check(opt_free(opt));
    return found;
}

int main(int argc, char **argv)
{
    const char *options[] = {"plans=False, num_threads=1", "plans=True, num_threads=1"};
    int rank, ranks;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (ranks > 1024)
        MPI_Abort(MPI_COMM_WORLD, 1);
    for (int i = 0; i < MOST; i++)
        dw[i] = 1;
    for (int i = 0; i < 2; i++) {
        check(opt_init(options[i]));
        double found[] = {measure(clip, "Shard(0)", 50), measure(step, "Replicate()", 128),
                          measure(clip_and_step, "Replicate()", 128), measure(step, "Replicate()", 10000),
                          measure(step, "Replicate()", MOST)};
        if (rank == 0)
            printf("%s: clip 50 values in %.1f us; step 128 in %.1f, clipped in %.1f, 10,000 and 100,000 in "
                   "%.1f "
                   "and %.1f us\n",
                   i ? "without Python" : "by Python", found[0], found[1], found[2], found[3], found[4]);
    }
    double found = least(gather, 1, 3000);
    if (rank == 0)
        printf("MPI_Allgather of a number on %d ranks: %.1f us\n", ranks, found);
    return MPI_Finalize() != MPI_SUCCESS;
}
