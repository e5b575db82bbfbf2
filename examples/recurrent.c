/* A recurrent network learns a sonnet letter by letter, with weights of 16 bits.
 *
 *     recurrent [losses.csv]
 *
 * Weights and gradients are bfloat16, half of the memory of float32; sums are float32.  bfloat16 has 8
 * bits: a step smaller than 1/512 of a weight is lost when it is rounded.  So the network is trained
 * twice: with a float32 copy of the weights, which optplug keeps, and without. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <optplug.h>

static const char text[] =
    "Shall I compare thee to a summer's day? Thou art more lovely and more temperate: Rough winds do shake "
    "the darling buds of May, And summer's lease hath all too short a date: Sometime too hot the eye of "
    "heaven shines, And often is his gold complexion dimm'd; And every fair from fair sometime declines, "
    "By chance or nature's changing course untrimm'd;";

enum { LETTERS = 128, HIDDEN = 40, LENGTH = sizeof text - 2, WINDOW = 32, STEPS = 3000 };

/* h(t) = tanh(in[letter] + w h(t-1) + b), and the next letter is softmax(out h). */
enum {
    IN = 0,
    W = LETTERS * HIDDEN,
    B = W + HIDDEN * HIDDEN,
    OUT = B + HIDDEN,
    ALL = OUT + LETTERS * HIDDEN
};
static uint16_t weights[ALL], gradients[ALL]; /* bfloat16: the upper half of a float */
static float p[ALL], dp[ALL];                 /* the same for computing */

static float widen(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static uint16_t narrow(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* to the nearest, ties to even */
}

static int check(int result)
{
    if (result < 0) {
        fprintf(stderr, "recurrent: %s\n", opt_error());
        exit(1);
    }
    return result;
}

static void next(const float *before, int letter, float *h)
{
    for (int i = 0; i < HIDDEN; i++) {
        float sum = p[B + i] + p[IN + letter * HIDDEN + i];
        for (int j = 0; j < HIDDEN; j++)
            sum += p[W + i * HIDDEN + j] * before[j];
        h[i] = tanhf(sum);
    }
}

static void softmax(const float *h, float *q)
{
    float total = 0;
    for (int c = 0; c < LETTERS; c++) {
        float sum = 0;
        for (int i = 0; i < HIDDEN; i++)
            sum += p[OUT + c * HIDDEN + i] * h[i];
        total += q[c] = expf(fminf(sum, 60));
    }
    for (int c = 0; c < LETTERS; c++)
        q[c] /= total;
}

/* The loss of a window of the text that begins with state h[0], and its gradient, backwards in time. */
static float loss_and_gradient(int first, float h[WINDOW + 1][HIDDEN])
{
    static float q[WINDOW][LETTERS];
    float loss = 0, dh[HIDDEN] = {0}, dsum[HIDDEN];
    for (int i = 0; i < ALL; i++)
        p[i] = widen(weights[i]), dp[i] = 0;
    for (int t = 0; t < WINDOW; t++) {
        next(h[t], text[(first + t) % LENGTH], h[t + 1]);
        softmax(h[t + 1], q[t]);
        loss -= logf(q[t][(int)text[(first + t + 1) % LENGTH]] + 1e-20f) / WINDOW;
    }
    for (int t = WINDOW - 1; t >= 0; t--) {
        for (int c = 0; c < LETTERS; c++) {
            float delta = (q[t][c] - (c == text[(first + t + 1) % LENGTH])) / WINDOW;
            for (int i = 0; i < HIDDEN; i++) {
                dp[OUT + c * HIDDEN + i] += delta * h[t + 1][i];
                dh[i] += delta * p[OUT + c * HIDDEN + i];
            }
        }
        for (int i = 0; i < HIDDEN; i++) {
            dsum[i] = dh[i] * (1 - h[t + 1][i] * h[t + 1][i]);
            dp[B + i] += dsum[i];
            dp[IN + text[(first + t) % LENGTH] * HIDDEN + i] += dsum[i];
            dh[i] = 0;
        }
        for (int i = 0; i < HIDDEN; i++)
            for (int j = 0; j < HIDDEN; j++) {
                dp[W + i * HIDDEN + j] += dsum[i] * h[t][j];
                dh[j] += dsum[i] * p[W + i * HIDDEN + j];
            }
    }
    for (int i = 0; i < ALL; i++)
        gradients[i] = narrow(dp[i]);
    return loss;
}

static void train(const char *options, float losses[STEPS / 100])
{
    float h[WINDOW + 1][HIDDEN] = {{0}}, mean = 0, q[LETTERS];
    srand(1);
    for (int i = 0; i < ALL; i++)
        weights[i] = narrow(0.2f * (2 * ((float)rand() / (float)RAND_MAX) - 1));
    check(opt_init(options));
    int opt = check(opt_create("AdamW(lr=4e-3)"));
    check(opt_bind(opt, "weights", "bfloat16", ALL, weights, gradients));
    check(opt_schedule(opt, "LinearLR(start_factor=1, end_factor=0.02, total_iters=3000)"));
    for (int i = 0; i < STEPS; i++) {
        mean += loss_and_gradient(i * WINDOW % LENGTH, h) / 100;
        check(opt_clip_grad_norm(opt, 1.0, 2.0, 0, NULL));
        check(opt_step(opt));
        check(opt_schedule_step(opt));
        memcpy(h[0], h[WINDOW], sizeof h[0]); /* the next window goes on where this one ends */
        if (i % 100 == 99)
            losses[i / 100] = mean, mean = 0;
    }
    check(opt_free(opt));

    printf("%s: loss %.3f\n  S", options, losses[STEPS / 100 - 1]);
    memset(h[0], 0, sizeof h[0]);
    for (int i = 0, letter = 'S'; i < 90; i++) { /* the likeliest letter, again and again */
        next(h[0], letter, h[1]);
        memcpy(h[0], h[1], sizeof h[0]);
        softmax(h[0], q);
        for (int c = letter = 0; c < LETTERS; c++)
            letter = q[c] > q[letter] ? c : letter;
        putchar(letter);
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    float with[STEPS / 100], without[STEPS / 100];
    train("master_weights=True", with);
    train("master_weights=False", without);
    FILE *file = argc > 1 ? fopen(argv[1], "w") : NULL;
    if (file) {
        fprintf(file, "step,with float32 copies,without\n");
        for (int i = 0; i < STEPS / 100; i++)
            fprintf(file, "%d,%.4f,%.4f\n", 100 * (i + 1), with[i], without[i]);
        fclose(file);
    }
    return 0;
}
