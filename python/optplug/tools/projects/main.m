% @NAME@ fits a curve to points with an optimizer of PyTorch's:
%
%     octave main.m                        by Adam
%     octave main.m 'RMSprop(lr=0.01)'     by another one
%
% Put your simulation and its gradient in place of loss_and_gradient.
1;  % a script

% The mean square of w(1) exp(-w(2) t) - y over points of 2 exp(-0.5 t), and its gradient.
function [loss, dw] = loss_and_gradient(w)
    t = 0.2 * (0:19)';
    decay = exp(-w(2) * t);
    errors = w(1) * decay - 2 * exp(-0.5 * t);
    loss = mean(errors.^2);
    dw = [2 * mean(errors .* decay); -2 * mean(errors .* w(1) .* t .* decay)];
end

addpath('@FOLDER@');
here = fileparts(mfilename('fullpath'));
addpath(here);
if exist('optplug_mex', 'file') ~= 3
    optplug.build(here);  % once
end

spec = 'Adam(lr=0.05)';
if numel(argv()) > 0
    spec = argv(){end};
end
opt = optplug.Optimizer(spec);
w = [1; 1];
opt.bind(w);
opt.schedule('CosineAnnealingLR(T_max=1000)');
for i = 0:1000
    [loss, dw] = loss_and_gradient(w);
    if mod(i, 100) == 0
        printf('%4d  loss %.3e  w %.6f %.6f\n', i, loss, w);
    end
    if i < 1000
        w = opt.step(w, dw);
        opt.schedule_step();
    end
end
