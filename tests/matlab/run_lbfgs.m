function w = run_lbfgs()
%RUN_LBFGS Steps of LBFGS down Rosenbrock's valley.
opt = optplug.Optimizer('LBFGS(line_search_fn=''strong_wolfe'')');
w = [-1; 1];
for i = 1:5
    [w, loss] = opt.step_closure(@banana, w);
end
w = [w; loss];
end
