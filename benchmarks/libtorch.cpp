// LibTorch's own C++ optimizers.
#include <torch/torch.h>

#include "server.h"

static std::unique_ptr<torch::optim::Optimizer> optimizer;

template <class Optimizer, class Options>
static std::unique_ptr<torch::optim::Optimizer> make(std::vector<torch::Tensor> parameters)
{
    return std::make_unique<Optimizer>(std::move(parameters), Options(1e-3));
}

static int setup(const char *name, int count, long size)
{
    std::vector<torch::Tensor> parameters;
    for (int i = 0; i < count; i++) {
        float *data = filled(size), *grad = filled(size);
        parameters.push_back(torch::from_blob(data, {size}, free).requires_grad_());
        parameters.back().mutable_grad() = torch::from_blob(grad, {size}, free);
    }
    namespace o = torch::optim;
    std::string wanted = name;
    if (wanted == "Adam")
        optimizer = make<o::Adam, o::AdamOptions>(parameters);
    else if (wanted == "AdamW")
        optimizer = make<o::AdamW, o::AdamWOptions>(parameters);
    else if (wanted == "SGD")
        optimizer = make<o::SGD, o::SGDOptions>(parameters);
    else if (wanted == "Adagrad")
        optimizer = make<o::Adagrad, o::AdagradOptions>(parameters);
    else if (wanted == "RMSprop")
        optimizer = make<o::RMSprop, o::RMSpropOptions>(parameters);
    else
        return 0;
    for (int i = 0; i < 3; i++)
        step();
    return 1;
}

static void step() { optimizer->step(); }

static void teardown() { optimizer.reset(); }

static double extra(const char *, long) { return 0; }
