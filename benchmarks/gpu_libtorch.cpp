// LibTorch's own C++ Adam, on arrays of a GPU.
#include <torch/torch.h>

#include "gpu.h"

static std::unique_ptr<torch::optim::Adam> optimizer;

static int setup(const char *name, int count, long size)
{
    if (strcmp(name, "Adam") != 0 || !make_arrays(count, size))
        return 0;
    std::vector<torch::Tensor> parameters;
    for (int i = 0; i < count; i++) {
        parameters.push_back(torch::from_blob(data[i], {size}, torch::kCUDA).requires_grad_());
        parameters.back().mutable_grad() = torch::from_blob(grad[i], {size}, torch::kCUDA);
    }
    optimizer = std::make_unique<torch::optim::Adam>(std::move(parameters), 1e-3);
    for (int i = 0; i < 3; i++)
        step();
    return 1;
}

static void step() { optimizer->step(); }

static void teardown()
{
    optimizer.reset();
    free_arrays();
}
