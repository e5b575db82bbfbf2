/* Swing a pendulum up with a motor that is too weak to lift it, and as little effort as it takes.
 *
 *     control [torque.csv [losses.csv]]
 *
 * The angle obeys theta'' = -sin(theta) + torque, and the torque of each time step is a parameter.
 * The gradient comes from the adjoint: the same steps backwards.  Adam finds the way; LBFGS, which
 * evaluates the loss as often as its line search asks, ends it. */
#include <Eigen/Dense>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <optplug.hpp>

namespace
{
constexpr int steps = 300;
constexpr double duration = 15, dt = duration / steps, effort = 0.02, pi = 3.14159265358979323846;

struct Path {
    Eigen::VectorXd angle{Eigen::VectorXd::Zero(steps + 1)}, speed{Eigen::VectorXd::Zero(steps + 1)};
};

Path simulate(const Eigen::VectorXd &torque)
{
    Path path;
    for (int i = 0; i < steps; i++) {
        path.speed[i + 1] = path.speed[i] + dt * (torque[i] - std::sin(path.angle[i]));
        path.angle[i + 1] = path.angle[i] + dt * path.speed[i + 1];
    }
    return path;
}

/* How far from standing upright at the end, and the effort; its gradient for each torque. */
double loss_and_gradient(const Eigen::VectorXd &torque, Eigen::VectorXd &gradient)
{
    const Path path = simulate(torque);
    const double off = path.angle[steps] - pi, speed = path.speed[steps];
    double d_angle = 2 * off, d_speed = 2 * speed;

    for (int i = steps - 1; i >= 0; i--) {
        d_speed += dt * d_angle; /* of angle[i + 1], through speed[i + 1] */
        gradient[i] = dt * d_speed + 2 * effort * dt * torque[i];
        d_angle -= dt * d_speed * std::cos(path.angle[i]);
    }
    return off * off + speed * speed + effort * dt * torque.squaredNorm();
}
} // namespace

int main(int argc, char **argv)
try {
    Eigen::VectorXd torque(steps), gradient(steps);
    for (int i = 0; i < steps; i++) /* a small push at the pendulum's own frequency */
        torque[i] = 0.1 * std::cos(dt * i);
    std::ofstream losses(argc > 2 ? argv[2] : "/dev/null");
    losses << "evaluation,Adam,LBFGS\n";
    int evaluations = 0;
    double loss = 0;

    optplug::Optimizer adam("Adam(lr=0.01)");
    adam.bind("torque", torque, gradient);
    adam.schedule("CosineAnnealingLR(T_max=300)");
    for (int i = 0; i < 300; i++) {
        loss = loss_and_gradient(torque, gradient);
        losses << evaluations++ << "," << loss << ",\n";
        adam.step();
        adam.schedule_step();
    }
    std::printf("Adam:  %4d evaluations, loss %.8f\n", evaluations, loss);

    /* The gradients have the factor dt, so LBFGS's own tolerances would stop it early. */
    optplug::Optimizer lbfgs(
        "LBFGS(line_search_fn='strong_wolfe', history_size=30, tolerance_grad=1e-9, tolerance_change=0)");
    lbfgs.bind("torque", torque, gradient);
    for (int i = 0; i < 20; i++)
        lbfgs.step_closure([&] {
            loss = loss_and_gradient(torque, gradient);
            losses << evaluations++ << ",," << loss << "\n";
            return loss;
        });
    loss = loss_and_gradient(torque, gradient);
    std::printf("LBFGS: %4d evaluations, loss %.8f, largest gradient %.0e\n", evaluations, loss,
                gradient.cwiseAbs().maxCoeff());

    const Path path = simulate(torque);
    std::printf("it ends %.4f from upright, with a torque of at most %.2f\n", path.angle[steps] - pi,
                torque.cwiseAbs().maxCoeff());
    std::ofstream file(argc > 1 ? argv[1] : "/dev/null");
    file << "time,angle,torque\n";
    for (int i = 0; i < steps; i++)
        file << i * dt << "," << path.angle[i] << "," << torque[i] << "\n";
} catch (const std::exception &error) {
    std::fprintf(stderr, "control: %s\n", error.what());
    return 1;
}
