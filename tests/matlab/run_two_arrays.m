function w = run_two_arrays()
%RUN_TWO_ARRAYS Steps of SGD on a struct, with a schedule and clipping.
opt = optplug.Optimizer('SGD(lr=0.1, momentum=0.9)');
p = struct('b', single([1 -2]), 'w', [1 2 3; 4 5 6]);
opt.bind(p);
opt.schedule('StepLR(step_size=3, gamma=0.5)');
for i = 1:10
    opt.grad(struct('w', 2 * p.w, 'b', 2 * p.b));
    opt.clip_grad_norm(1.5);
    p = opt.step();
    opt.schedule_step();
end
w = [p.w(:); double(p.b(:))];
end
