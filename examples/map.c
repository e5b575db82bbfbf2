/* Draw the map of 400 places from the distances between some of them.
 *
 *     map [map.csv]
 *
 * Each place is a row of a table, x and y: an embedding.  A step looks at 64 of the 79800 distances, so
 * the gradient is zero but for a few rows, and SparseAdam steps these alone. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <optplug.h>

enum { SIDE = 20, PLACES = SIDE * SIDE, BATCH = 64, STEPS = 3000 };

static double truth[PLACES][2];

/* What is lent to the optimizer: the table, and the rows that have a gradient in this step. */
static double at[PLACES][2], grad_rows[2 * BATCH][2];
static int64_t indices[2 * BATCH], count;

static double uniform(void) { return (double)rand() / RAND_MAX; }

static int check(int result)
{
    if (result < 0) {
        fprintf(stderr, "map: %s\n", opt_error());
        exit(1);
    }
    return result;
}

static double distance(const double *a, const double *b) { return hypot(a[0] - b[0], a[1] - b[1]); }

/* The mean square by which the map is wrong about a batch of measured distances, and its gradient. */
static double loss_and_gradient(void)
{
    double loss = 0;
    count = 0;
    for (int k = 0; k < BATCH; k++) {
        int i = rand() % PLACES, j = rand() % PLACES;
        if (i == j)
            continue;
        double measured = distance(truth[i], truth[j]) * (1 + 0.1 * (uniform() - 0.5));
        double shown = distance(at[i], at[j]) + 1e-12, error = shown - measured;
        loss += error * error / BATCH;
        indices[count] = i, indices[count + 1] = j; /* an index may stand there twice: rows add up */
        for (int c = 0; c < 2; c++) {
            double pull = 2 * error * (at[i][c] - at[j][c]) / shown / BATCH;
            grad_rows[count][c] = pull;
            grad_rows[count + 1][c] = -pull;
        }
        count += 2;
    }
    return loss;
}

/* How wrong the map is about all distances, in the unit of the grid. */
static double error_of_the_map(void)
{
    double sum = 0;
    for (int i = 0; i < PLACES; i++)
        for (int j = 0; j < i; j++)
            sum += pow(distance(at[i], at[j]) - distance(truth[i], truth[j]), 2);
    return sqrt(sum / (PLACES * (PLACES - 1) / 2));
}

int main(int argc, char **argv)
{
    for (int i = 0; i < PLACES; i++)
        for (int c = 0; c < 2; c++) {
            truth[i][c] = (c ? i / SIDE : i % SIDE) + 0.4 * (uniform() - 0.5);
            at[i][c] = uniform();
        }

    check(opt_init("num_threads=1")); /* so few rows are faster without threads */
    int opt = check(opt_create("SparseAdam(lr=0.5)"));
    check(opt_bind_sparse(opt, "places", "float64", PLACES, 2, at, 2 * BATCH, &count, indices, grad_rows));
    check(opt_schedule(opt, "CosineAnnealingLR(T_max=30)"));
    for (int i = 0; i < STEPS; i++) {
        double loss = loss_and_gradient();
        check(opt_step(opt));
        if (i % (STEPS / 30) == STEPS / 30 - 1)
            check(opt_schedule_step(opt));
        if (i % (STEPS / 6) == 0)
            printf("step %5d  loss %8.4f  the map is wrong by %.3f\n", i, loss, error_of_the_map());
    }
    printf("step %5d  the map is wrong by %.3f\n", STEPS, error_of_the_map());
    check(opt_free(opt));

    FILE *file = argc > 1 ? fopen(argv[1], "w") : NULL;
    if (file) {
        fprintf(file, "true x,true y,x,y\n");
        for (int i = 0; i < PLACES; i++)
            fprintf(file, "%.4f,%.4f,%.4f,%.4f\n", truth[i][0], truth[i][1], at[i][0], at[i][1]);
        fclose(file);
    }
    return 0;
}
