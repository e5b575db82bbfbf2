/* optplug for C++17: the functions of optplug.h as a class that owns its handle.  The comments in optplug.h
 * are the manual.
 *
 *     std::vector<double> w(3), dw(3);
 *     optplug::Optimizer opt("Adam(lr=0.1)");
 *     opt.bind("w", w, dw);
 *     for (int i = 0; i < 100; i++) {
 *         gradient(w, dw);
 *         opt.step();
 *     }
 *
 * A call that fails throws optplug::Error and changes nothing.  If your closure or your
 * schedule's function throws, the call fails and rethrows that exception.  An optimizer can be moved but not copied.
 *
 * If your program has an opt_init or an OPT_OK of its own, define OPTPLUG_NO_SHORT_NAMES first. */
#ifndef OPTPLUG_HPP
#define OPTPLUG_HPP

#include <complex>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <list>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <optplug.h>

namespace optplug
{

/* A failed call: what() is opt_error()'s line, status() one of OPT_E..., traceback() opt_traceback()'s. */
class Error : public std::runtime_error
{
  public:
    Error(int status, const std::string &message, std::string traceback = "")
        : std::runtime_error(message), status_(status), traceback_(std::move(traceback))
    {
    }
    int status() const noexcept { return status_; }
    const std::string &traceback() const noexcept { return traceback_; }

  private:
    int status_;
    std::string traceback_;
};

/* Return a result, or throw an Error if it is negative. */
template <class Result> Result check(Result result)
{
    if (result < 0)
        throw Error(static_cast<int>(result), optplug_error(), optplug_traceback());
    return result;
}

inline std::string check_text(const char *text)
{
    return text ? text : throw Error(optplug_error_status(), optplug_error(), optplug_traceback());
}

inline void init(const std::string &options = "") { check(optplug_init(options.c_str())); }
/* Set a function that receives the library's log, as opt_log does; {} for none.  Its exceptions are dropped. */
inline void log(std::function<void(int level, const std::string &line)> function)
{
    using Function = decltype(function);
    static std::mutex changing;
    static Function told;
    std::lock_guard<std::mutex> lock(changing);
    check(optplug_log(nullptr, nullptr)); /* waits for running calls of the previous function */
    told = std::move(function);
    if (told)
        check(optplug_log(
            [](void *, int level, const char *line) {
                try {
                    told(level, line);
                } catch (...) {
                }
            },
            nullptr));
}

inline std::string list(const std::string &kind) { return check_text(optplug_list(kind.c_str())); }
inline std::string describe() { return check_text(optplug_describe(0)); }
inline std::string warning() { return optplug_warning(); }
inline std::string version() { return optplug_version(); }

/* PyTorch's name for the type of a value; specialize it for your own half-precision type. */
template <class T> struct dtype {
    static_assert(sizeof(T) == 0,
                  "parameters must be float, double, std::complex<float> or std::complex<double>");
    static constexpr const char *name = "";
};
template <> struct dtype<float> {
    static constexpr const char *name = "float32";
};
template <> struct dtype<double> {
    static constexpr const char *name = "float64";
};
template <> struct dtype<std::complex<float>> {
    static constexpr const char *name = "complex64";
};
template <> struct dtype<std::complex<double>> {
    static constexpr const char *name = "complex128";
};

using Sizes = std::vector<std::int64_t>;

/* The shape and strides of an array; strides count values. */
struct Layout {
    Sizes shape, strides;

    std::int64_t size() const
    {
        return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
    }
    bool is_dense() const
    {
        if (shape.size() == 1)
            return strides[0] == 1 || shape[0] < 2;
        return (strides[0] == 1 && strides[1] == shape[0]) || (strides[1] == 1 && strides[0] == shape[1]);
    }
    std::string text() const
    {
        std::string result;
        for (std::int64_t n : shape)
            result += (result.empty() ? "" : " x ") + std::to_string(n);
        return result;
    }
};

/* Whether a type reports strides, as Eigen's matrices, maps and blocks do. */
template <class T, class = void> struct has_strides : std::false_type {};
template <class T>
struct has_strides<T, std::void_t<decltype(std::declval<T &>().innerStride()), decltype(T::IsRowMajor),
                                  decltype(T::IsVectorAtCompileTime)>> : std::true_type {};

/* The layout of a variable that has data() and size(). */
template <class T> Layout layout_of(T &x)
{
    const auto size = static_cast<std::int64_t>(std::size(x));
    if constexpr (!has_strides<T>::value)
        return {{size}, {1}};
    else if constexpr (T::IsVectorAtCompileTime)
        return {{size}, {x.innerStride()}};
    else if constexpr (T::IsRowMajor)
        return {{x.rows(), x.cols()}, {x.outerStride(), x.innerStride()}};
    else
        return {{x.rows(), x.cols()}, {x.innerStride(), x.outerStride()}};
}

class Optimizer
{
  public:
    using Sizes = optplug::Sizes;
    /* Returns a schedule's factor for an epoch, per parameter group; for CyclicLR, its scale_fn of x. */
    using ScheduleFunction = std::function<double(double epoch, int group)>;

    /* Empty, for a member that is assigned later: until then every call throws. */
    Optimizer() = default;
    explicit Optimizer(const std::string &spec) : handle_(check(optplug_create(spec.c_str()))) {}
    Optimizer(Optimizer &&other) noexcept
        : handle_(std::exchange(other.handle_, 0)), functions_(std::move(other.functions_))
    {
    }
    Optimizer &operator=(Optimizer &&other) noexcept
    {
        std::swap(handle_, other.handle_);
        std::swap(functions_, other.functions_);
        return *this;
    }
    ~Optimizer()
    {
        if (handle_ != 0)
            optplug_free(handle_);
    }

    /* The C library's handle, for functions that this class lacks; 0 if empty or moved from. */
    int handle() const noexcept { return handle_; }
    explicit operator bool() const noexcept { return handle_ != 0; }

    /* Bind vectors, arrays, spans: anything that has data() and size() and does not move.  Eigen's matrices,
     * maps and blocks too: PyTorch sees one long vector if data and grad have no gaps and the same order,
     * otherwise their rows and columns. */
    template <class Data, class Grad> void bind(const std::string &name, Data &data, Grad &grad)
    {
        const Layout a = layout_of(data), b = layout_of(grad);
        const bool is_mixed = a.shape.size() != b.shape.size(); /* a matrix and a vector */
        const bool flat = a.is_dense() && b.is_dense() && (is_mixed || a.strides == b.strides);
        if (is_mixed && flat ? a.size() != b.size() : a.shape != b.shape)
            throw Error(OPTPLUG_EINVAL, "parameter '" + name + "': data has " + a.text() +
                                            " values and grad " + b.text() + (is_mixed ? ", with gaps" : ""));
        if (flat)
            bind(name, std::data(data), std::data(grad), a.size());
        else
            bind(name, std::data(data), std::data(grad), a.shape, a.strides, b.strides);
    }
    template <class T> void bind(const std::string &name, T *data, T *grad, std::int64_t n)
    {
        check(optplug_bind(handle_, name.c_str(), dtype<T>::name, n, data, grad));
    }
    /* Any shape; strides count values, and without them arrays are row-major. */
    template <class T>
    void bind(const std::string &name, T *data, T *grad, const Sizes &shape, const Sizes &strides = {},
              const Sizes &grad_strides = {})
    {
        bind_device(name, "cpu", data, grad, shape, strides, grad_strides);
    }
    /* The same in GPU memory: device is "cuda:0", for example. */
    template <class T>
    void bind_device(const std::string &name, const std::string &device, T *data, T *grad, const Sizes &shape,
                     const Sizes &strides = {}, const Sizes &grad_strides = {})
    {
        for (const Sizes *sizes : {&strides, &grad_strides})
            if (!sizes->empty() && sizes->size() != shape.size())
                throw Error(OPTPLUG_EINVAL, "parameter '" + name + "': " + std::to_string(sizes->size()) +
                                                " strides for " + std::to_string(shape.size()) +
                                                " dimensions");
        check(optplug_bind_nd(handle_, name.c_str(), dtype<T>::name, device.c_str(),
                              static_cast<int>(shape.size()), shape.data(), data,
                              strides.empty() ? nullptr : strides.data(), grad,
                              grad_strides.empty() ? nullptr : grad_strides.data()));
    }
    /* A parameter whose arrays you pass to each step. */
    template <class T> void bind(const std::string &name, const Sizes &shape)
    {
        bind<T>(name, static_cast<T *>(nullptr), static_cast<T *>(nullptr), shape);
    }
    template <class T>
    void bind_sparse(const std::string &name, T *data, std::int64_t rows, std::int64_t columns,
                     std::int64_t capacity, const std::int64_t *count, const std::int64_t *indices,
                     T *grad_rows)
    {
        check(optplug_bind_sparse(handle_, name.c_str(), dtype<T>::name, rows, columns, data, capacity, count,
                                  indices, grad_rows));
    }
    void group(const std::string &options) { check(optplug_group(handle_, options.c_str())); }

    /* Step it on many ranks: through your collective, that of optplug_mpi.h, or else torch.distributed. */
    void distribute(const std::string &placement, optplug_collective collective = nullptr,
                    void *user = nullptr, int rank = 0, int size = 0)
    {
        check(optplug_distribute(handle_, placement.c_str(), collective, user, rank, size));
    }
    /* Say which block of a grid this rank's part is; shape defaults to the one that was bound. */
    void bind_block(const std::string &name, const Sizes &global_shape, const Sizes &offset,
                    const Sizes &shape = {})
    {
        for (const Sizes *sizes : {&offset, &shape})
            if (sizes->size() != global_shape.size() && !(sizes == &shape && shape.empty()))
                throw Error(OPTPLUG_EINVAL, "parameter '" + name + "': " + std::to_string(sizes->size()) +
                                                " sizes for " + std::to_string(global_shape.size()) +
                                                " dimensions");
        check(optplug_bind_block(handle_, name.c_str(), static_cast<int>(global_shape.size()),
                                 global_shape.data(), offset.data(), shape.empty() ? nullptr : shape.data()));
    }

    void step() { check(optplug_step(handle_)); }
    void step(double *data, const double *grad) { check(optplug_step_f64(handle_, data, grad)); }
    void step(float *data, const float *grad) { check(optplug_step_f32(handle_, data, grad)); }
    /* closure() computes the gradients and returns the loss; step_closure returns the first loss. */
    template <class Closure> double step_closure(Closure &&closure)
    {
        return call_with(optplug_step_closure, closure);
    }
    /* while (opt.iterate(loss)) loss = loss_and_gradient(w, dw); */
    bool iterate(double loss) { return check(optplug_iterate(handle_, loss)) == OPTPLUG_EVALUATE; }
    /* Check a closure's gradients against differences of its losses; throws if one is wrong, and says where.
     * Returns the largest relative error of a parameter's gradient. */
    template <class Closure> double check_gradient(Closure &&closure)
    {
        return call_with(optplug_check_gradient, closure);
    }
    /* while (opt.check_gradient_iterate(loss, error)) loss = loss_and_gradient(w, dw); */
    bool check_gradient_iterate(double loss, double &error)
    {
        return check(optplug_check_gradient_iterate(handle_, loss, &error)) == OPTPLUG_EVALUATE;
    }

    void zero_grad() { check(optplug_zero_grad(handle_)); }
    double clip_grad_norm(double max_norm, double norm_type = 2, bool error_if_nonfinite = false)
    {
        double norm = 0;
        check(optplug_clip_grad_norm(handle_, max_norm, norm_type, error_if_nonfinite, &norm));
        return norm;
    }
    void clip_grad_value(double clip_value) { check(optplug_clip_grad_value(handle_, clip_value)); }

    double get(int group, const std::string &name) const
    {
        double value = 0;
        check(optplug_get(handle_, group, name.c_str(), &value));
        return value;
    }
    void set(int group, const std::string &options) { check(optplug_set(handle_, group, options.c_str())); }
    void set_value(int group, const std::string &name, double value)
    {
        check(optplug_set_value(handle_, group, name.c_str(), value));
    }
    void schedule(const std::string &spec) { check(optplug_schedule(handle_, spec.c_str())); }
    /* Remove all schedulers and their functions. */
    void schedule(std::nullptr_t)
    {
        check(optplug_schedule(handle_, nullptr));
        functions_.clear();
    }
    void schedule(const std::string &spec, ScheduleFunction function)
    {
        functions_.push_back({std::move(function), nullptr});
        int status = optplug_schedule_callback(
            handle_, spec.c_str(),
            [](void *user, double *value) {
                auto &its = *static_cast<Call<ScheduleFunction> *>(user);
                return guard(its.thrown,
                             [&] { *value = its.function(value[0], static_cast<int>(value[1])); });
            },
            &functions_.back());
        std::exception_ptr thrown = functions_.back().thrown;
        if (status < 0)
            functions_.pop_back();
        if (thrown)
            std::rethrow_exception(thrown);
        check(status);
    }
    void schedule_step() { check_functions(optplug_schedule_step(handle_)); }
    void schedule_step(double metric) { check_functions(optplug_schedule_step_metric(handle_, metric)); }

    /* stream is a cudaStream_t or hipStream_t; nullptr returns to PyTorch's current stream. */
    void stream(void *stream) { check(optplug_stream(handle_, stream)); }
    void grad_scale(const void *scale, const void *found_inf = nullptr)
    {
        check(optplug_grad_scale(handle_, scale, found_inf));
    }

    void average(const std::string &spec) { check(optplug_average(handle_, spec.c_str())); }
    template <class T> void average_get(const std::string &name, T *data) const
    {
        check(optplug_average_get(handle_, name.c_str(), data));
    }
    void average_swap() { check(optplug_average_swap(handle_)); }
    void call(const std::string &method) { check(optplug_call(handle_, method.c_str())); }

    void checkpoint(const std::string &options) { check(optplug_checkpoint(handle_, options.c_str())); }
    void attribute(const std::string &name, const std::string &text)
    {
        check(optplug_attribute(handle_, name.c_str(), text.c_str()));
    }
    /* Remove it. */
    void attribute(const std::string &name, std::nullptr_t)
    {
        check(optplug_attribute(handle_, name.c_str(), nullptr));
    }
    std::string attribute_get(const std::string &name) const
    {
        return check_text(optplug_attribute_get(handle_, name.c_str()));
    }
    void save(const std::string &path) const { check(optplug_save(handle_, path.c_str())); }
    void load(const std::string &path) { check_functions(optplug_load(handle_, path.c_str())); }
    std::vector<unsigned char> save_memory() const
    {
        std::vector<unsigned char> bytes(
            static_cast<std::size_t>(check(optplug_save_memory(handle_, nullptr, 0))));
        auto size =
            check(optplug_save_memory(handle_, bytes.data(), static_cast<std::int64_t>(bytes.size())));
        bytes.resize(static_cast<std::size_t>(size));
        return bytes;
    }
    void load_memory(const std::vector<unsigned char> &bytes)
    {
        check_functions(optplug_load_memory(handle_, bytes.data(), static_cast<std::int64_t>(bytes.size())));
    }
    std::string describe() const
    {
        if (!handle_) /* opt_describe(0) describes the library */
            throw Error(OPTPLUG_EHANDLE, "opt=0 is not an optimizer: it was not created, or was moved from");
        return check_text(optplug_describe(handle_));
    }

  private:
    template <class Function> struct Call {
        std::conditional_t<std::is_same_v<Function, ScheduleFunction>, Function, Function &> function;
        std::exception_ptr thrown;
    };

    /* Call a library function with the program's closure, and return the number that it sets. */
    template <class Function, class Closure> double call_with(Function function, Closure &closure)
    {
        Call<Closure> call{closure, nullptr};
        double result = 0;
        int status = function(
            handle_,
            [](void *user, double *value) {
                auto &its = *static_cast<Call<Closure> *>(user);
                return guard(its.thrown, [&] { *value = its.function(); });
            },
            &call, &result);
        if (call.thrown)
            std::rethrow_exception(call.thrown);
        check(status);
        return result;
    }
    /* Keep an exception from passing through the library. */
    template <class Function> static int guard(std::exception_ptr &thrown, Function &&function) noexcept
    {
        try {
            function();
            return 0;
        } catch (...) {
            thrown = std::current_exception();
            return -1;
        }
    }
    void check_functions(int status)
    {
        for (auto &call : functions_)
            if (std::exception_ptr thrown = std::exchange(call.thrown, nullptr))
                std::rethrow_exception(thrown);
        check(status);
    }

    int handle_ = 0;
    std::list<Call<ScheduleFunction>> functions_; /* a list: their addresses must not change */
};

} // namespace optplug

#endif
