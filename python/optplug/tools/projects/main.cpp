/* @NAME@ fits a curve to points with an optimizer of PyTorch's:
 *
 *     build/@NAME@                        by Adam
 *     build/@NAME@ "RMSprop(lr=0.01)"     by another one, without compiling again
 *
 * Put your simulation and its gradient in place of loss_and_gradient. */
#include <cmath>
#include <cstdio>
#include <vector>

#include <optplug.hpp>

/* The mean square of w[0] exp(-w[1] t) - y over points of 2 exp(-0.5 t), and its gradient. */
static double loss_and_gradient(const std::vector<double> &w, std::vector<double> &dw)
{
    const int points = 20;
    double loss = 0;
    dw = {0, 0};
    for (int i = 0; i < points; i++) {
        double t = 0.2 * i, decay = std::exp(-w[1] * t), error = w[0] * decay - 2 * std::exp(-0.5 * t);
        loss += error * error / points;
        dw[0] += 2 * error * decay / points;
        dw[1] -= 2 * error * w[0] * t * decay / points;
    }
    return loss;
}

static void tell(int step, double loss, const std::vector<double> &w)
{
    std::printf("%4d  loss %.3e  w %.6f %.6f\n", step, loss, w[0], w[1]);
}

int main(int argc, char **argv)
try {
    const int steps = 1000;
    std::vector<double> w{1, 1}, dw(2);
    optplug::Optimizer opt(argc > 1 ? argv[1] : "Adam(lr=0.05)");
    opt.bind("w", w, dw);
    opt.schedule("CosineAnnealingLR(T_max=1000)");
    for (int i = 0; i < steps; i++) {
        double loss = loss_and_gradient(w, dw);
        if (i % 100 == 0)
            tell(i, loss, w);
        opt.step();
        opt.schedule_step();
    }
    tell(steps, loss_and_gradient(w, dw), w);
} catch (const optplug::Error &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
