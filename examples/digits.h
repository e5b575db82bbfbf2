/* A network, 64 -> 48 -> 10, that reads handwritten digits, and the gradients of its cross-entropy loss: what
 * digits.c trains in one process and digits_ranks.c on many. */
#ifndef DIGITS_H
#define DIGITS_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIXELS = 64, HIDDEN = 48, CLASSES = 10, IMAGES = 1797, BATCH = 32, EPOCHS = 30 };

/* The data: pixels from 0 to 1, and the digit each image shows.  Every fifth image is held out. */
static float image[IMAGES][PIXELS];
static int digit[IMAGES], train[IMAGES], test[IMAGES], n_train, n_test;

/* The parameters, and the gradient of the loss with respect to each. */
static float w1[HIDDEN][PIXELS], b1[HIDDEN], w2[CLASSES][HIDDEN], b2[CLASSES];
static float dw1[HIDDEN][PIXELS], db1[HIDDEN], dw2[CLASSES][HIDDEN], db2[CLASSES];

static inline void load_digits(const char *path)
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

static inline void draw_weights(void)
{
    for (int h = 0; h < HIDDEN; h++)
        for (int j = 0; j < PIXELS; j++)
            w1[h][j] = uniform() * sqrtf(6.0f / PIXELS);
    for (int c = 0; c < CLASSES; c++)
        for (int h = 0; h < HIDDEN; h++)
            w2[c][h] = uniform() * sqrtf(6.0f / HIDDEN);
}

static inline void shuffle(void)
{
    for (int i = n_train - 1; i > 0; i--) {
        int j = rand() % (i + 1), swap = train[i];
        train[i] = train[j];
        train[j] = swap;
    }
}

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

/* Return the mean loss of a batch, and leave its gradient in dw1, db1, dw2 and db2; or of each only what
 * every ranks-th image, from number rank on, gives to it. */
static inline double batch(int first, int rank, int ranks)
{
    double loss = 0;
    memset(dw1, 0, sizeof dw1), memset(db1, 0, sizeof db1);
    memset(dw2, 0, sizeof dw2), memset(db2, 0, sizeof db2);
    for (int k = first + rank; k < first + BATCH; k += ranks) {
        float hidden[HIDDEN], p[CLASSES];
        loss += forward(train[k], hidden, p) / BATCH;
        backward(train[k], hidden, p);
    }
    return loss;
}

static inline double test_accuracy(void)
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

#endif
