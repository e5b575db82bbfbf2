/* Train a network that reads handwritten digits, with any optimizer of PyTorch and no other library.
 *
 *     digits ["AdamW(lr=2e-3)" [digits.csv [losses.csv]]]
 *
 * The network, 64 -> 48 -> 10, the gradients of its cross-entropy loss, and the arrays that hold them
 * are this program's own.  optplug does one thing: opt_step turns gradients into better weights. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <optplug.h>

enum { PIXELS = 64, HIDDEN = 48, CLASSES = 10, IMAGES = 1797, BATCH = 32, EPOCHS = 30 };

/* The data: pixels from 0 to 1, and the digit each image shows.  Every fifth image is held out. */
static float image[IMAGES][PIXELS];
static int digit[IMAGES], train[IMAGES], test[IMAGES], n_train, n_test;

/* The parameters, and the gradient of the loss with respect to each. */
static float w1[HIDDEN][PIXELS], b1[HIDDEN], w2[CLASSES][HIDDEN], b2[CLASSES];
static float dw1[HIDDEN][PIXELS], db1[HIDDEN], dw2[CLASSES][HIDDEN], db2[CLASSES];

static void load_digits(const char *path)
{
    FILE *file = fopen(path, "r");
    for (int i = 0; i < IMAGES; i++) {
        for (int j = 0; j < PIXELS; j++) {
            int value;
            if (!file || fscanf(file, "%d,", &value) != 1) {
                fprintf(stderr, "digits: '%s' is not examples/data/digits.csv\n", path);
                exit(1);
            }
            image[i][j] = (float)value / 16;
        }
        if (fscanf(file, "%d", &digit[i]) != 1)
            exit(1);
        if (i % 5 == 4)
            test[n_test++] = i;
        else
            train[n_train++] = i;
    }
    fclose(file);
}

static float uniform(void) { return 2 * ((float)rand() / (float)RAND_MAX) - 1; }

/* Run the network on an image; return the loss, and leave what it computed in hidden and p. */
static float forward(int i, float hidden[HIDDEN], float p[CLASSES])
{
    for (int h = 0; h < HIDDEN; h++) {
        float sum = b1[h];
        for (int j = 0; j < PIXELS; j++)
            sum += w1[h][j] * image[i][j];
        hidden[h] = sum > 0 ? sum : 0; /* ReLU */
    }
    float top = -INFINITY, total = 0;
    for (int c = 0; c < CLASSES; c++) {
        p[c] = b2[c];
        for (int h = 0; h < HIDDEN; h++)
            p[c] += w2[c][h] * hidden[h];
        top = fmaxf(top, p[c]);
    }
    for (int c = 0; c < CLASSES; c++)
        total += p[c] = expf(p[c] - top);
    for (int c = 0; c < CLASSES; c++)
        p[c] /= total; /* softmax: the probability of each digit */
    return -logf(fmaxf(p[digit[i]], 1e-30f));
}

/* Add one image's gradients, as backpropagation has them, to dw1, db1, dw2 and db2. */
static void backward(int i, const float hidden[HIDDEN], const float p[CLASSES])
{
    float dhidden[HIDDEN] = {0};
    for (int c = 0; c < CLASSES; c++) {
        float delta = (p[c] - (c == digit[i])) / BATCH;
        db2[c] += delta;
        for (int h = 0; h < HIDDEN; h++) {
            dw2[c][h] += delta * hidden[h];
            dhidden[h] += delta * w2[c][h];
        }
    }
    for (int h = 0; h < HIDDEN; h++) {
        if (hidden[h] <= 0)
            continue;
        db1[h] += dhidden[h];
        for (int j = 0; j < PIXELS; j++)
            dw1[h][j] += dhidden[h] * image[i][j];
    }
}

static double test_accuracy(void)
{
    int right = 0;
    for (int k = 0; k < n_test; k++) {
        float hidden[HIDDEN], p[CLASSES];
        forward(test[k], hidden, p);
        int best = 0;
        for (int c = 1; c < CLASSES; c++)
            best = p[c] > p[best] ? c : best;
        right += best == digit[test[k]];
    }
    return 100.0 * right / n_test;
}

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

    for (int h = 0; h < HIDDEN; h++)
        for (int j = 0; j < PIXELS; j++)
            w1[h][j] = uniform() * sqrtf(6.0f / PIXELS);
    for (int c = 0; c < CLASSES; c++)
        for (int h = 0; h < HIDDEN; h++)
            w2[c][h] = uniform() * sqrtf(6.0f / HIDDEN);

    int opt = check(opt_create(spec));
    check(opt_bind(opt, "w1", "float32", HIDDEN * PIXELS, w1, dw1));
    check(opt_bind(opt, "b1", "float32", HIDDEN, b1, db1));
    check(opt_bind(opt, "w2", "float32", CLASSES * HIDDEN, w2, dw2));
    check(opt_bind(opt, "b2", "float32", CLASSES, b2, db2));

    int steps = 0, terminal = isatty(STDOUT_FILENO);
    double start = seconds(), in_opt_step = 0, accuracy = 0;
    for (int epoch = 1; epoch <= EPOCHS; epoch++) {
        for (int i = n_train - 1; i > 0; i--) { /* shuffle */
            int j = rand() % (i + 1), swap = train[i];
            train[i] = train[j];
            train[j] = swap;
        }
        double loss = 0;
        for (int first = 0; first + BATCH <= n_train; first += BATCH, steps++) {
            memset(dw1, 0, sizeof dw1), memset(db1, 0, sizeof db1);
            memset(dw2, 0, sizeof dw2), memset(db2, 0, sizeof db2);
            for (int k = first; k < first + BATCH; k++) {
                float hidden[HIDDEN], p[CLASSES];
                loss += forward(train[k], hidden, p) / (n_train / BATCH * BATCH);
                backward(train[k], hidden, p);
            }
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
