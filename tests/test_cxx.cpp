/* The C++ header, with numbers worked out by hand: all of them are exact in binary. */
#include <array>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <thread>

#include <optplug.hpp>

#define CHECK(condition) ((condition) ? (void)0 : failed(__LINE__, #condition))

using optplug::Error;
using optplug::Optimizer;

static_assert(!std::is_copy_constructible_v<Optimizer> && !std::is_copy_assignable_v<Optimizer>);
static_assert(std::is_nothrow_move_constructible_v<Optimizer> &&
              std::is_nothrow_move_assignable_v<Optimizer>);

static void failed(int line, const char *what)
{
    std::fprintf(stderr, "%s:%d: this is false: %s\n  opt_error(): '%s'\n", __FILE__, line, what,
                 opt_error());
    std::exit(1);
}

/* Check that a call throws an Error with this status and these words. */
template <class Call> static void check_throws(int line, int status, const std::string &words, Call call)
{
    try {
        call();
    } catch (const Error &error) {
        if (error.status() != status || std::string(error.what()).find(words) == std::string::npos)
            failed(line, error.what());
        return;
    }
    failed(line, "it threw nothing");
}
#define CHECK_THROWS(status, words, call) check_throws(__LINE__, status, words, [&] { call; })

static void what_has_data_and_size_is_bound()
{
    std::vector<double> v{1, 2}, dv{2, 4};
    std::array<float, 2> a{1, 2}, da{2, 4};
    std::complex<float> c[]{{1, 2}}, dc[]{{2, 4}};
    double p[6]{1, 2, 3, 4, 5, 6}, dp[6]{2, 4, 6, 8, 10, 12};
    Optimizer opt("SGD(lr=0.5)");
    opt.bind("v", v, dv);
    opt.bind("a", a, da);
    opt.bind("c", c, dc);
    opt.bind("p", p, dp, 2);
    opt.bind("m", p + 2, dp + 2, {2, 2}, {1, 2}, {1, 2});
    opt.step();
    CHECK(v[0] == 0 && v[1] == 0 && a[0] == 0 && a[1] == 0 && c[0] == std::complex<float>());
    for (double value : p)
        CHECK(value == 0);
    dv.push_back(0);
    CHECK_THROWS(OPT_EINVAL, "data has 2 values and grad 3", opt.bind("v", v, dv));
    CHECK_THROWS(OPT_EINVAL, "1 strides for 2 dimensions", opt.bind("m", p, dp, {2, 2}, {1}));
    CHECK_THROWS(OPT_ESTATE, "'new' is new after the first step", opt.bind("new", p, dp, 2));
}

static void arrays_may_come_with_each_step()
{
    double w[]{1, 2}, dw[]{2, 4};
    float f[]{1}, df[]{2};
    Optimizer opt("SGD(lr=0.5)"), single("SGD(lr=0.5)");
    opt.bind<double>("w", {2, 1});
    single.bind<float>("f", {1});
    opt.step(w, dw);
    single.step(f, df);
    CHECK(w[0] == 0 && w[1] == 0 && f[0] == 0);
    CHECK_THROWS(OPT_ESTATE, "opt_step_f64", opt.step());
}

static void a_lambda_is_a_closure()
{
    double x[]{3}, dx[1], y[]{3}, dy[1];
    int calls = 0;
    Optimizer opt("LBFGS(lr=0.5, max_iter=20)"), same("LBFGS(lr=0.5, max_iter=20)");
    opt.bind("x", x, dx);
    same.bind("y", y, dy);
    double loss = opt.step_closure([&] {
        calls++;
        dx[0] = 2 * x[0];
        return x[0] * x[0];
    });
    CHECK(loss == 9 && calls > 1);
    for (loss = 0; same.iterate(loss); loss = y[0] * y[0])
        dy[0] = 2 * y[0];
    CHECK(x[0] == y[0] && x[0] * x[0] < 1e-4);

    double before = x[0];
    try {
        opt.step_closure([&]() -> double { throw std::domain_error("mine"); });
        failed(__LINE__, "nothing was thrown");
    } catch (const std::domain_error &error) {
        CHECK(error.what() == std::string("mine") && x[0] == before);
    }
    CHECK_THROWS(OPT_ESTATE, "LBFGS evaluates", opt.step());

    auto times = [&](double factor) {
        return [&, factor] {
            dx[0] = factor * 2 * x[0];
            return x[0] * x[0];
        };
    };
    CHECK(opt.check_gradient(times(1)) < 1e-6);
    CHECK_THROWS(OPT_EINVAL, "'x' has the opposite sign", opt.check_gradient(times(-1)));
    double error = 1;
    for (loss = 0; opt.check_gradient_iterate(loss, error);)
        loss = times(1)();
    CHECK(error < 1e-6 && x[0] == before);
}

static void schedules_groups_and_hyperparameters()
{
    double a[]{0}, b[]{0}, d[]{1}, e[]{1};
    bool throws = false;
    Optimizer made("SGD(lr=1)");
    made.bind("a", a, d);
    made.group("lr=0.5");
    made.bind("b", b, e);
    made.schedule("LambdaLR()", [&](double epoch, int group) {
        if (throws)
            throw std::domain_error("mine");
        return epoch == 0 ? 1 : group == 0 ? 0.5 : 0.25;
    });
    Optimizer opt = std::move(made); /* with its function */
    opt.step();
    opt.schedule_step();
    CHECK(a[0] == -1 && b[0] == -0.5 && opt.get(0, "lr") == 0.5 && opt.get(1, "lr") == 0.125);
    throws = true;
    try {
        opt.schedule_step();
        failed(__LINE__, "nothing was thrown");
    } catch (const std::domain_error &) {
    }
    throws = false;
    opt.schedule_step();
    opt.set(-1, "lr=2");
    CHECK(opt.get(-1, "lr") == 2);
    CHECK_THROWS(OPT_EINVAL, "'rl'", opt.set(0, "rl=1"));
    opt.set_value(-1, "lr", 4);
    CHECK(opt.get(-1, "lr") == 4);
    CHECK_THROWS(OPT_EINVAL, "lr=-1.0", opt.set_value(0, "lr", -1));
    CHECK_THROWS(OPT_EINVAL, "StepLR", opt.schedule("StepLR()"));
    CHECK_THROWS(OPT_EHANDLE, "is not an optimizer", made.step());
    CHECK_THROWS(OPT_EHANDLE, "is not an optimizer", made.describe());

    Optimizer refused("SGD(lr=1)");
    refused.bind("a", a, d);
    try {
        refused.schedule("LambdaLR()", [](double, int) -> double { throw std::domain_error("mine"); });
        failed(__LINE__, "nothing was thrown");
    } catch (const std::domain_error &) {
    }
    refused.schedule("StepLR(step_size=1, gamma=0.5)");
    refused.step();
    refused.schedule_step(); /* of which that function is no part */
    CHECK(refused.get(0, "lr") == 0.5);

    auto used = std::make_shared<int>(0);
    refused.schedule("LambdaLR()", [used](double, int) -> double { return ++*used / 4.0; });
    refused.schedule(nullptr);
    CHECK(used.use_count() == 1 && *used == 1 && refused.get(0, "lr") == 0.25);
    CHECK_THROWS(OPT_ESTATE, "there is no scheduler", refused.schedule_step());

    Optimizer plateau("SGD(lr=1)");
    plateau.bind("a", a, d);
    plateau.schedule("ReduceLROnPlateau(factor=0.5, patience=0)");
    plateau.schedule_step(1.0);
    plateau.schedule_step(1.0);
    CHECK(plateau.get(0, "lr") == 0.5);
    opt = std::move(plateau);
    CHECK(opt.get(0, "lr") == 0.5 && opt.handle() > 0);
}

static void gradients_averages_and_checkpoints()
{
    double x[]{0, 0}, dx[]{3, 4}, average[2];
    Optimizer opt("SGD(lr=1, momentum=0.5)");
    opt.bind("x", x, dx);
    opt.average("AveragedModel()");
    CHECK(opt.clip_grad_norm(10) == 5 && opt.clip_grad_norm(10, 1) == 7);
    opt.clip_grad_value(3);
    CHECK(dx[1] == 3);
    opt.step();
    opt.save("cxx checkpoint.pt");
    std::vector<unsigned char> bytes = opt.save_memory();
    opt.step();
    CHECK(x[0] == -7.5);
    opt.average_get("x", average);
    CHECK(average[0] == -5.25);
    opt.average_swap();
    CHECK(x[0] == -5.25);
    opt.average_swap();
    x[0] = x[1] = -3;
    opt.load("cxx checkpoint.pt");
    opt.step();
    CHECK(x[0] == -7.5);
    x[0] = x[1] = -3;
    opt.load_memory(bytes);
    opt.step();
    CHECK(x[0] == -7.5);
    opt.checkpoint("parameters=True");
    std::vector<unsigned char> values = opt.save_memory();
    x[0] = 0;
    opt.load_memory(values);
    CHECK(x[0] == -7.5);
    opt.attribute("time", "12.5 h");
    opt.attribute("gone", "x");
    opt.attribute("gone", nullptr);
    CHECK(opt.attribute_get("time") == "12.5 h" && opt.get(0, "step") == 2);
    CHECK_THROWS(OPT_EINVAL, "no attribute 'gone'", opt.attribute_get("gone"));
    CHECK_THROWS(OPT_EINVAL, "method 'eval': SGD has no train()", opt.call("eval"));
    CHECK_THROWS(OPT_EINVAL, "no option 'x'", opt.checkpoint("x=True"));
    bytes[bytes.size() / 2] ^= 1;
    CHECK_THROWS(OPT_EINVAL, "damaged", opt.load_memory(bytes));
    CHECK_THROWS(OPT_EIO, "/nowhere", opt.save("/nowhere/at/all"));
    opt.zero_grad();
    CHECK(dx[0] == 0 && std::remove("cxx checkpoint.pt") == 0);
}

static void sparse_rows_are_stepped()
{
    double table[4][2]{}, rows[2][2]{{1, 1}, {1, 1}};
    std::int64_t count = 1, indices[]{3, 0};
    Optimizer opt("SGD(lr=0.5)");
    opt.bind_sparse("table", &table[0][0], 4, 2, 2, &count, indices, &rows[0][0]);
    opt.step();
    CHECK(table[3][0] == -0.5 && table[3][1] == -0.5 && table[0][0] == 0);
}

static void memory_of_a_device_is_bound_by_its_name() /* the CPU is a device, too */
{
    double m[]{1, 1, 1, 1}, dm[]{2, 9, 2, 9, 2, 9, 2, 9};
    Optimizer opt("SGD(lr=0.5)");
    opt.bind_device("m", "cpu", m, dm, {2, 2}, {1, 2}, {2, 4});
    opt.bind_block("m", {2, 2}, {0, 0}); /* of one rank the whole */
    CHECK_THROWS(OPT_EINVAL, "there are no other ranks", opt.bind_block("m", {4, 2}, {0, 0}, {2, 2}));
    CHECK_THROWS(OPT_EINVAL, "1 sizes for 2 dimensions", opt.bind_block("m", {4, 2}, {0}));
    opt.step();
    for (double value : m)
        CHECK(value == 0);
    CHECK_THROWS(OPT_EINVAL, "no device 'cuda:99'", opt.bind_device("m", "cuda:99", m, dm, {4}));
    CHECK_THROWS(OPT_EINVAL, "1 strides for 2 dimensions",
                 opt.bind_device("m", "cuda:99", m, dm, {2, 2}, {1}));
}

static void streams_and_scales()
{
    double x[]{1}, dx[]{2};
    float scale = 2, found_inf = 0;
    Optimizer opt("SGD(lr=0.5)");
    CHECK_THROWS(OPT_ESTATE, "nothing is bound", opt.grad_scale(&scale));
    opt.bind("x", x, dx);
    opt.stream(nullptr);
    CHECK_THROWS(OPT_ESTATE, "no parameter is on a GPU", opt.stream(x));
    opt.grad_scale(&scale, &found_inf);
    opt.step();
    CHECK(x[0] == 0.5);
    found_inf = 1;
    opt.step();
    CHECK(x[0] == 0.5);
    opt.grad_scale(&scale);
    dx[0] = 2;
    opt.step();
    CHECK(x[0] == 0);
    opt.grad_scale(nullptr);
    dx[0] = 2;
    opt.step();
    CHECK(x[0] == -1);
}

/* What returns a text has no status of its own to fail with. */
static void a_text_that_is_not_there_throws_its_status()
{
    setenv("OPTPLUG_PYTHON", "/nowhere", 1);
    CHECK_THROWS(OPT_ESTART, "/nowhere", optplug::list("optimizers"));
    unsetenv("OPTPLUG_PYTHON");
    Optimizer opt("SGD(lr=0.5)"), taken(std::move(opt));
    CHECK_THROWS(OPT_EHANDLE, "is not an optimizer", opt.describe());
}

static void a_member_is_created_later()
{
    struct {
        Optimizer opt;
    } model;
    double w[] = {0}, dw[] = {1};
    CHECK(!model.opt && model.opt.handle() == 0);
    CHECK_THROWS(OPT_EHANDLE, "opt=0 is not an optimizer", model.opt.step());
    CHECK_THROWS(OPT_EHANDLE, "opt=0 is not an optimizer", model.opt.describe());
    model.opt = Optimizer("SGD(lr=1)");
    model.opt.bind("w", w, dw, 1);
    model.opt.step();
    CHECK(model.opt && w[0] == -1);
}

static void a_function_is_told_what_is_done()
{
    std::vector<std::string> lines;
    optplug::log([&](int level, const std::string &line) {
        lines.push_back(std::to_string(level) + line);
        throw 1; /* which ends nothing */
    });
    Optimizer("SGD(lr=0.125)");
    optplug::log({});
    Optimizer("SGD(lr=0.5)");
    CHECK(!lines.empty() && lines.back()[0] == '1' &&
          lines.back().find("SGD(lr=0.125)") != std::string::npos);
}

static void errors_are_exceptions()
{
    CHECK_THROWS(OPT_EINVAL, "did you mean Adam", Optimizer("Adm()"));
    CHECK_THROWS(OPT_EINVAL, "num_threads", optplug::init("num_threads=0"));
    CHECK_THROWS(OPT_EINVAL, "optimisers", optplug::list("optimisers"));
    try {
        Optimizer("Adam(lr=-1)");
        failed(__LINE__, "nothing was thrown");
    } catch (const Error &error) {
        CHECK(error.traceback().find("Invalid learning rate") != std::string::npos);
    }
    optplug::init();
    CHECK(optplug::list("optimizers").find("AdamW") != std::string::npos);
    CHECK(optplug::version() == OPTPLUG_VERSION && optplug::warning().empty());
    CHECK(optplug::describe().find("torch") != std::string::npos);
    CHECK(Optimizer("Adam(lr=0.25)").describe().find("0.25") != std::string::npos);
}

/* What the header never lets happen, and a host of the bare functions does. */
static void an_exception_out_of_a_bare_closure_is_told()
{
    for (int i = 0; i < 20; i++) {
        double w = 1, dw = 1;
        int opt = opt_create("LBFGS()");
        CHECK(opt_bind(opt, "w", "float64", 1, &w, &dw) == OPT_OK);
        try {
            opt_step_closure(opt, [](void *, double *) -> int { throw 7; }, nullptr, nullptr);
            failed(__LINE__, "nothing was thrown");
        } catch (int thrown) {
            CHECK(thrown == 7);
        }
        CHECK(opt_step(opt) == OPT_ESTATE && std::strstr(opt_error(), "was left by an exception"));
        CHECK(opt_free(opt) == OPT_OK);
    }
    a_lambda_is_a_closure();
}

/* Two ranks that are threads, and a collective of theirs. */
struct Pair {
    std::mutex mutex;
    std::condition_variable changed;
    int count = 0;
    const void *sent[2];

    void wait()
    {
        std::unique_lock<std::mutex> lock(mutex);
        int round = count++ / 2;
        changed.notify_all();
        changed.wait(lock, [&] { return count / 2 > round; });
    }
};

struct Rank {
    Pair *pair;
    int rank;
};

static int collective(void *user, const char *what, const char *, const void *send, void *receive,
                      std::int64_t count)
{
    const Rank *of = static_cast<Rank *>(user);
    of->pair->sent[of->rank] = send;
    of->pair->wait();
    auto size = static_cast<std::size_t>(count), mine = static_cast<std::size_t>(of->rank);
    for (std::size_t r = 0; r < 2; r++)
        if (std::string(what) == "all_gather")
            std::memcpy(static_cast<char *>(receive) + r * size, of->pair->sent[r], size);
        else
            for (std::size_t i = 0; i < size; i++) {
                double part = static_cast<const double *>(of->pair->sent[r])[mine * size + i];
                double &sum = static_cast<double *>(receive)[i];
                sum = r ? sum + part : part;
            }
    of->pair->wait();
    return 0;
}

static void ranks_step_together()
{
    Pair pair;
    std::vector<double> w[2];
    auto work = [&](int rank) {
        Rank of{&pair, rank};
        w[rank].assign(200, 1); /* of which each rank steps some */
        std::vector<double> dw(200);
        for (int i = 0; i < 200; i++)
            dw[static_cast<std::size_t>(i)] = rank * i;
        Optimizer opt("SGD(lr=0.5)");
        opt.distribute("Replicate()", collective, &of, rank, 2);
        opt.bind("w", w[rank], dw);
        for (int step = 0; step < 4; step++)
            opt.step();
    };
    std::thread other(work, 1);
    work(0);
    other.join();
    for (std::size_t i = 0; i < 200; i++)
        CHECK(w[0][i] == 1.0 - double(i) &&
              w[1][i] == w[0][i]); /* by the mean of 0 and i, four times the half of it */
}

int main()
{
    a_text_that_is_not_there_throws_its_status(); /* first, since it is about the start */
    a_member_is_created_later();
    a_function_is_told_what_is_done();
    what_has_data_and_size_is_bound();
    arrays_may_come_with_each_step();
    a_lambda_is_a_closure();
    schedules_groups_and_hyperparameters();
    gradients_averages_and_checkpoints();
    sparse_rows_are_stepped();
    memory_of_a_device_is_bound_by_its_name();
    streams_and_scales();
    errors_are_exceptions();
    an_exception_out_of_a_bare_closure_is_told();
    ranks_step_together();
}
