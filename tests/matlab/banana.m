function [loss, gradient] = banana(w)
%BANANA Rosenbrock's function and its gradient.
x = w(1);
y = w(2);
loss = (1 - x) * (1 - x) + 100 * (y - x * x) * (y - x * x);
gradient = [-2 * (1 - x) - 400 * x * (y - x * x); 200 * (y - x * x)];
end
