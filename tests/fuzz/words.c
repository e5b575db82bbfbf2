/* What the fuzzer says: specs, options, names, paths. */
#include "fuzz.h"

/* ---- what is said ---- */

const char *const optimizers[] = {
    "SGD(lr=0.1)",
    "SGD(lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True, maximize=True)",
    "SGD(lr=0.1, fused=False)",
    "Adam()",
    "Adam(lr=0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.01, amsgrad=True, maximize=True)",
    "Adam(lr=0.1, foreach=True)",
    "Adam(fused=True)",
    "AdamW(lr=0.1, weight_decay=0.1)",
    "Adagrad(lr=0.1, lr_decay=0.01, initial_accumulator_value=0.1)",
    "Adadelta(lr=0.5, rho=0.8, weight_decay=0.01)",
    "Adafactor(lr=0.05, beta2_decay=-0.5, weight_decay=0.1)",
    "Adamax(lr=0.1)",
    "ASGD(lr=0.1, t0=5, lambd=0.1)",
    "LBFGS(lr=0.1, max_iter=3)",
    "LBFGS(max_iter=4, history_size=3, line_search_fn='strong_wolfe')",
    "Muon(lr=0.1, momentum=0.9, ns_steps=3, adjust_lr_fn='match_rms_adamw')",
    "NAdam(lr=0.1, weight_decay=0.01, decoupled_weight_decay=True)",
    "RAdam(lr=0.1, decoupled_weight_decay=True)",
    "RMSprop(lr=0.1, momentum=0.9, centered=True)",
    "Rprop(lr=0.1, etas=(0.4, 1.3), step_sizes=(1e-5, 10))",
    "SparseAdam(lr=0.1, betas=(0.8, 0.99))",
    "torch.optim:Adam(lr=1)",
    NULL};
const char *const schedulers[] = {
    "LambdaLR()",
    "MultiplicativeLR()",
    "StepLR(step_size=3, gamma=0.5)",
    "MultiStepLR([2, 9], gamma=0.3)",
    "ConstantLR(factor=0.3, total_iters=4)",
    "LinearLR(start_factor=0.1, total_iters=8)",
    "ExponentialLR(0.9)",
    "SequentialLR([LinearLR(total_iters=5), CosineAnnealingLR(T_max=10)], milestones=[5])",
    "CosineAnnealingLR(T_max=7, eta_min=1e-4)",
    "ChainedScheduler([PolynomialLR(total_iters=9), StepLR(4)])",
    "ReduceLROnPlateau(patience=1, factor=0.5)",
    "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=4, cycle_momentum=False)",
    "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=4)",
    "CosineAnnealingWarmRestarts(T_0=3, T_mult=2)",
    "OneCycleLR(max_lr=0.1, total_steps=30, cycle_momentum=False)",
    "PolynomialLR(total_iters=12, power=0.9)",
    "SWALR(swa_lr=0.05, anneal_epochs=5)",
    NULL};
const char *const averages[] = {"AveragedModel()",
                                "AveragedModel(avg_fn=get_ema_avg_fn(0.9))",
                                "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.7))",
                                "AveragedModel(multi_avg_fn=get_swa_multi_avg_fn())",
                                "AveragedModel(use_buffers=True)",
                                NULL};
const char *const methods[] = {"train", "eval", "step", "", "__init__", NULL};
const char *const options[] = {"lr=1e-3",
                               "lr=0.25, weight_decay=0",
                               "betas=(0.9, 0.99)",
                               "momentum=0.9",
                               "momentum=0, nesterov=False",
                               "amsgrad=True",
                               "eps=1e-6, maximize=True",
                               "weight_decay=0.5",
                               "lr_decay=0.1",
                               "max_iter=2",
                               "rho=0.5, lr=1",
                               "etas=(0.5, 1.2)",
                               "",
                               NULL};
const char *const settings[] = {"error_if_nonfinite=True",
                                "error_if_nonfinite=False",
                                "plans=False",
                                "plans=True",
                                "plans='stable'",
                                "plans='direct'",
                                "num_threads=1",
                                "num_threads=2",
                                "third_party=False, sqrt='processor'",
                                "python='/nowhere/bin/python3', num_threads=1",
                                "",
                                NULL};
const char *const checkpoint_options[] = {
    "parameters=True", "parameters=False", "schedules=False", "schedules=True, parameters=False", "", NULL};
const char *const names[] = {"w", "v", "u", "a.b", "\xc3\xbc", "", NULL};
const char *const hyperparameters[] = {"lr",      "betas[0]", "betas[1]", "momentum", "weight_decay",
                                       "amsgrad", "eps",      "etas[1]",  "fused",    "max_iter",
                                       "lambd",   "lr[0]",    "params",   "step",     NULL};
const char *const kinds[] = {"optimizers", "schedulers", "dtypes", "devices", "Adam", "SGD", "StepLR", NULL};
const char *const dtypes[] = {"float16", "bfloat16", "float32", "float64", "complex64", "complex128", NULL};
const int dtype_sizes[] = {2, 2, 4, 8, 8, 16};
const char *const paths[] = {"a", "b", "c", "missing/a", ".", "", NULL}; /* in a folder of our own */
const char *const devices[] = {"cpu", NULL};
