/* Fit a small network to a few measurements, many times over, and see where the fits disagree.
 *
 *     ensemble [bands.csv]
 *
 * Each member of the ensemble has its own start, its own sample of the measurements and its own optimizer.
 * Threads of this program train them side by side: calls on different optimizers run in parallel, and
 * num_threads=1 keeps PyTorch from adding threads of its own. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include <optplug.h>

enum { MEMBERS = 40, THREADS = 4, POINTS = 40, HIDDEN = 20, ALL = 3 * HIDDEN + 1, STEPS = 2000, GRID = 121 };

static double x[POINTS], y[POINTS]; /* what was measured */
static double curve[MEMBERS][GRID]; /* what each member makes of it */
static char failure[MEMBERS][200];  /* why one failed */

static double uniform(unsigned *seed) { return rand_r(seed) / (double)RAND_MAX; }

static double normal(unsigned *seed)
{
    return sqrt(-2 * log(uniform(seed) + 1e-300)) * cos(6.283185307179586 * uniform(seed));
}

/* A network with one hidden layer at t; if dw is not NULL, add its gradient times delta. */
static double network(const double *w, double t, double delta, double *dw)
{
    double sum = w[3 * HIDDEN];
    if (dw)
        dw[3 * HIDDEN] += delta;
    for (int h = 0; h < HIDDEN; h++) {
        double a = tanh(w[h] * t + w[HIDDEN + h]), b = w[2 * HIDDEN + h];
        sum += b * a;
        if (dw) {
            dw[2 * HIDDEN + h] += delta * a;
            dw[HIDDEN + h] += delta * b * (1 - a * a);
            dw[h] += delta * b * (1 - a * a) * t;
        }
    }
    return sum;
}

/* Train one member; return 0, or a negative number with the reason in this thread's opt_error(). */
static int train(int member)
{
    double w[ALL], dw[ALL];
    unsigned seed = 100 + (unsigned)member;
    int sample[POINTS], status;
    for (int i = 0; i < ALL; i++)
        w[i] = i < 2 * HIDDEN ? 3 * normal(&seed) : normal(&seed) / sqrt(HIDDEN);
    for (int i = 0; i < POINTS; i++)
        sample[i] = (int)(uniform(&seed) * POINTS) % POINTS; /* with repetition: a bootstrap */

    int opt = opt_create("AdamW(lr=0.02, weight_decay=0.01)");
    if ((status = opt) < 0 || (status = opt_bind(opt, "w", "float64", ALL, w, dw)) < 0 ||
        (status = opt_schedule(opt, "CosineAnnealingLR(T_max=2000)")) < 0)
        return status;
    for (int step = 0; step < STEPS && status >= 0; step++) {
        opt_zero_grad(opt);
        for (int i = 0; i < POINTS; i++) {
            int k = sample[i];
            network(w, x[k], 2 * (network(w, x[k], 0, NULL) - y[k]) / POINTS, dw);
        }
        if ((status = opt_step(opt)) >= 0)
            status = opt_schedule_step(opt);
    }
    for (int i = 0; i < GRID; i++)
        curve[member][i] = network(w, -1.5 + 3.0 * i / (GRID - 1), 0, NULL);
    return status < 0 ? status : opt_free(opt);
}

static void *work(void *first)
{
    for (int member = *(int *)first; member < MEMBERS; member += THREADS)
        if (train(member) < 0) /* opt_error() is of the thread that called: read it here */
            snprintf(failure[member], sizeof failure[member], "%s", opt_error());
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread[THREADS];
    int first[THREADS];
    unsigned seed = 1;
    for (int i = 0; i < POINTS; i++) { /* nothing was measured between -0.2 and 0.4 */
        x[i] = i % 2 ? -1 + 0.8 * uniform(&seed) : 0.4 + 0.6 * uniform(&seed);
        y[i] = sin(5 * x[i]) + 0.1 * normal(&seed);
    }
    if (opt_init("num_threads=1") < 0) {
        fprintf(stderr, "ensemble: %s\n", opt_error());
        return 1;
    }
    for (int i = 0; i < THREADS; i++) {
        first[i] = i;
        if (pthread_create(&thread[i], NULL, work, &first[i]) != 0)
            return 1;
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    for (int member = 0; member < MEMBERS; member++)
        if (failure[member][0]) {
            fprintf(stderr, "ensemble: member %d: %s\n", member, failure[member]);
            return 1;
        }

    FILE *file = fopen(argc > 1 ? argv[1] : "/dev/null", "w");
    double spread[2] = {0}; /* where there are measurements, and in the gap */
    int n[2] = {0};
    fprintf(file, "x,mean,deviation,truth\n");
    for (int i = 0; i < GRID; i++) {
        double t = -1.5 + 3.0 * i / (GRID - 1), mean = 0, square = 0;
        for (int member = 0; member < MEMBERS; member++)
            mean += curve[member][i] / MEMBERS;
        for (int member = 0; member < MEMBERS; member++)
            square += pow(curve[member][i] - mean, 2) / MEMBERS;
        fprintf(file, "%.4f,%.4f,%.4f,%.4f\n", t, mean, sqrt(square), sin(5 * t));
        if (fabs(t) < 1) {
            int gap = t > -0.15 && t < 0.35;
            spread[gap] += sqrt(square);
            n[gap]++;
        }
    }
    for (int i = 0; i < POINTS; i++)
        fprintf(file, "%.4f,%.4f,,\n", x[i], y[i]);
    fclose(file);
    printf(
        "%d networks, %d threads: they differ by %.2f where there are measurements, and by %.2f in the gap\n",
        MEMBERS, THREADS, spread[0] / n[0], spread[1] / n[1]);
    return 0;
}
