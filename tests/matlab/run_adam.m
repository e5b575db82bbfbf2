function w = run_adam()
%RUN_ADAM Steps of Adam on one array.
opt = optplug.Optimizer('Adam(lr=0.1)');
w = [5; -3; 2];
for i = 1:50
    w = opt.step(w, 2 * (w - [1; 2; 3]));
end
end
