/* The C++ header with Eigen's matrices, maps and blocks: what is bound is what is stepped. */
#include <cstdio>
#include <cstdlib>
#include <string>

#include <Eigen/Dense>
#include <optplug.hpp>

#define CHECK(condition) ((condition) ? (void)0 : failed(__LINE__, #condition))

using Eigen::Dynamic;
using Eigen::MatrixXd;
using Eigen::VectorXd;
using RowMajor = Eigen::Matrix<double, Dynamic, Dynamic, Eigen::RowMajor>;

static void failed(int line, const char *what)
{
    std::fprintf(stderr, "%s:%d: this is false: %s\n", __FILE__, line, what);
    std::exit(1);
}

/* Step by the gradient as it is. */
template <class Data, class Grad> static std::string step(Data &data, Grad &grad)
{
    optplug::Optimizer opt("SGD(lr=1.0)");
    opt.bind("w", data, grad);
    opt.step();
    return opt.describe();
}

static const MatrixXd numbers = (MatrixXd(3, 4) << 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12).finished();

static void whole_matrices_and_vectors_are_one_long_vector()
{
    MatrixXd w = MatrixXd::Zero(3, 4), dw = numbers;
    CHECK(step(w, dw).find("shape (12,)") != std::string::npos);
    CHECK(w == -numbers);
    RowMajor v = MatrixXd::Zero(3, 4), dv = numbers;
    CHECK(step(v, dv).find("shape (12,)") != std::string::npos);
    CHECK(v == -numbers);
    VectorXd x = VectorXd::Zero(3), dx = numbers.col(1);
    step(x, dx);
    CHECK(x == -numbers.col(1));
    std::vector<double> g(12, 1.0);
    step(w, g);
    CHECK(w == -numbers - MatrixXd::Ones(3, 4));
}

static void blocks_and_rows_leave_what_is_around_them()
{
    MatrixXd w = MatrixXd::Zero(3, 4), dw = numbers, expected = MatrixXd::Zero(3, 4);
    auto block = w.block(1, 1, 2, 2), grad = dw.block(1, 1, 2, 2);
    step(block, grad);
    expected.block(1, 1, 2, 2) = -numbers.block(1, 1, 2, 2);
    CHECK(w == expected);
    auto row = w.row(0), of_row = dw.row(0);
    step(row, of_row);
    expected.row(0) = -numbers.row(0);
    CHECK(w == expected);
    VectorXd dx = VectorXd::Ones(4);
    step(row, dx);
    expected.row(0).array() -= 1;
    CHECK(w == expected);
}

static void maps_have_their_strides()
{
    double memory[24] = {}, of_grad[24];
    for (int i = 0; i < 24; i++)
        of_grad[i] = i;
    using Stride = Eigen::Stride<Dynamic, Dynamic>;
    Eigen::Map<MatrixXd, 0, Stride> w(memory, 2, 3, Stride(8, 2)), dw(of_grad, 2, 3, Stride(8, 2));
    step(w, dw);
    for (int i = 0; i < 24; i++)
        CHECK(memory[i] == (i % 8 == 0 || i % 8 == 2 ? -i : 0));
}

static void orders_may_differ()
{
    MatrixXd w = MatrixXd::Zero(3, 4);
    RowMajor dw = numbers;
    CHECK(step(w, dw).find("shape (3, 4)") != std::string::npos);
    CHECK(w == -numbers);
    MatrixXd turned = numbers.transpose(), v = MatrixXd::Zero(3, 4);
    auto dv = turned.transpose();
    step(v, dv);
    CHECK(v == -numbers);
}

static void what_does_not_fit_is_refused()
{
    MatrixXd w = MatrixXd::Zero(3, 4), dw = MatrixXd::Ones(4, 3);
    auto block = w.block(0, 0, 2, 3);
    std::vector<double> g(6, 1.0);
    optplug::Optimizer opt("SGD(lr=1.0)");
    for (int i = 0; i < 2; i++)
        try {
            i ? opt.bind("w", block, g) : opt.bind("w", w, dw);
            failed(__LINE__, "it was bound");
        } catch (const optplug::Error &error) {
            CHECK(error.what() == std::string(i ? "parameter 'w': data has 2 x 3 values and grad 6, with gaps"
                                                : "parameter 'w': data has 3 x 4 values and grad 4 x 3"));
        }
    CHECK(w == MatrixXd::Zero(3, 4));
}

int main()
{
    whole_matrices_and_vectors_are_one_long_vector();
    blocks_and_rows_leave_what_is_around_them();
    maps_have_their_strides();
    orders_may_differ();
    what_does_not_fit_is_refused();
}
