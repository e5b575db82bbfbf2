// LibTorch's own C++ optimizers.
#include <torch/torch.h>

#include "evaluations.h"

namespace o = torch::optim;

static std::vector<torch::Tensor> parameters, averages;
static std::unique_ptr<o::Optimizer> optimizer;
static std::unique_ptr<o::StepLR> schedule;
static bool is_loop, is_setting;

template <class Optimizer, class Options> static void make()
{
    optimizer = std::make_unique<Optimizer>(parameters, Options(1e-3));
}

static torch::Tensor parameter_of(float *data, float *grad, long size)
{
    torch::Tensor parameter = torch::from_blob(data, {size}).requires_grad_();
    parameter.mutable_grad() = torch::from_blob(grad, {size});
    return parameter;
}

static int setup(const char *name, int count, long size)
{
    is_loop = strcmp(kind, "loop") == 0;
    is_setting = strcmp(kind, "set") == 0;
    for (int i = 0; i < count; i++) {
        parameters.push_back(torch::from_blob(filled(size), {size}, free).requires_grad_());
        parameters.back().mutable_grad() = torch::from_blob(filled(size), {size}, free);
    }
    std::string wanted = name;
    if (wanted == "Adam")
        make<o::Adam, o::AdamOptions>();
    else if (wanted == "AdamW")
        make<o::AdamW, o::AdamWOptions>();
    else if (wanted == "SGD")
        make<o::SGD, o::SGDOptions>();
    else if (wanted == "Adagrad")
        make<o::Adagrad, o::AdagradOptions>();
    else if (wanted == "RMSprop")
        make<o::RMSprop, o::RMSpropOptions>();
    else {
        teardown();
        return 0;
    }
    if (is_loop) {
        schedule = std::make_unique<o::StepLR>(*optimizer, 1000, 0.99);
        for (auto &parameter : parameters)
            averages.push_back(parameter.detach().clone());
    }
    for (int i = 0; i < 3; i++)
        step();
    return 1;
}

static void step()
{
    if (is_setting) {
        double lr = next_lr();
        for (auto &group : optimizer->param_groups())
            group.options().set_lr(lr);
    }
    if (!is_loop) {
        optimizer->step();
        return;
    }
    torch::nn::utils::clip_grad_norm_(parameters, 0.5);
    optimizer->step();
    schedule->step();
    torch::NoGradGuard guard;
    for (size_t i = 0; i < parameters.size(); i++)
        averages[i].lerp_(parameters[i], 1 - 0.999);
}

static void teardown()
{
    schedule.reset();
    optimizer.reset();
    parameters.clear();
    averages.clear();
}

// ---- what else is measured ----

static float w[50], dw[50];

static std::unique_ptr<o::Adam> new_optimizer()
{
    return std::make_unique<o::Adam>(std::vector{parameter_of(w, dw, 50)}, o::AdamOptions(1e-3));
}

static void live() { new_optimizer(); }

static void life()
{
    auto made = new_optimizer();
    for (int i = 0; i < 3; i++)
        made->step();
}

static double first_step()
{
    double spent = 0;
    int count = 0;
    for (double end = now() + 0.2; now() < end; count++) {
        auto made = new_optimizer();
        double start = now();
        made->step();
        spent += now() - start;
    }
    return spent / count;
}

static std::unique_ptr<o::LBFGS> lbfgs;

static void begin_lbfgs()
{
    auto options =
        o::LBFGSOptions().line_search_fn("strong_wolfe").max_iter(is_fresh ? FIRST_ITERATIONS : 20);
    lbfgs = std::make_unique<o::LBFGS>(std::vector{parameter_of(point, slope, dimensions)}, options);
}

static void step_lbfgs()
{
    lbfgs->step([] { return torch::scalar_tensor(evaluate(), torch::kDouble); });
}

static void free_lbfgs() { lbfgs.reset(); }

// As steps.c has them: "live", "first", "life", "evaluations N" and "fresh N".
static double extra(const char *command, long argument)
{
    if (strcmp(command, "live") == 0)
        return time_of(live, 0.2);
    if (strcmp(command, "first") == 0)
        return first_step();
    if (strcmp(command, "life") == 0)
        return time_of(life, 0.2);
    is_fresh = strcmp(command, "fresh") == 0;
    double seconds = time_evaluations(argument, begin_lbfgs, step_lbfgs, free_lbfgs);
    free(point);
    free(slope);
    return seconds;
}
