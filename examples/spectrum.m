% Fit three peaks and a sloping background to a measured spectrum, in Octave or MATLAB.
%
%     octave spectrum.m [spectrum.csv]
%
% First addpath the folder that `python -m optplug config --octave` prints, and call optplug.build once.
% Adam finds the peaks from a rough start, and LBFGS, which asks for the loss as it likes, fits them.
1;

function [loss, grads] = misfit(p, x, y)
    % p: a struct of heights, centres and widths of the peaks, and the background's offset and slope.
    model = p.background(1) + p.background(2) * x;
    for k = 1:3
        peak{k} = exp(-((x - p.centre(k)) / p.width(k)) .^ 2);
        model = model + p.height(k) * peak{k};
    end
    r = 2 * (model - y) / numel(y);
    loss = mean((model - y) .^ 2);
    grads.height = zeros(3, 1);
    grads.centre = zeros(3, 1);
    grads.width = zeros(3, 1);
    for k = 1:3
        d = (x - p.centre(k)) / p.width(k);
        grads.height(k) = sum(r .* peak{k});
        grads.centre(k) = sum(r .* peak{k} * p.height(k) .* d) * 2 / p.width(k);
        grads.width(k) = sum(r .* peak{k} * p.height(k) .* d .^ 2) * 2 / p.width(k);
    end
    grads.background = [sum(r); sum(r .* x)];
end

function y = model_of(p, x)
    y = p.background(1) + p.background(2) * x;
    for k = 1:3
        y = y + p.height(k) * exp(-((x - p.centre(k)) / p.width(k)) .^ 2);
    end
end

% What was measured.
x = linspace(0, 10, 400)';
true_p = struct('height', [3; 1.5; 2], 'centre', [2.5; 4.2; 7.1], 'width', [0.6; 0.9; 0.4], ...
                'background', [0.5; 0.08]);
s = 42; % Park and Miller's random numbers: the same everywhere
noise = zeros(size(x));
for i = 1:numel(x)
    for k = 1:12
        s = mod(16807 * s, 2147483647);
        noise(i) = noise(i) + s / 2147483647;
    end
end
y = model_of(true_p, x) + 0.1 * (noise - 6);

% A rough start, as one reads it off the plot.
p = struct('height', [2; 1; 2], 'centre', [2.2; 4.8; 7.4], 'width', [1; 1; 1], 'background', [0; 0]);
start = model_of(p, x);

opt = optplug.Optimizer('Adam(lr=0.03)');
for i = 1:300
    [loss, grads] = misfit(p, x, y);
    p = opt.step(p, grads);
end
printf('Adam:  misfit %.5f\n', misfit(p, x, y));

opt = optplug.Optimizer('LBFGS(line_search_fn=''strong_wolfe'', tolerance_grad=1e-9, tolerance_change=0)');
for i = 1:5
    [p, loss] = opt.step_closure(@(p) misfit(p, x, y), p);
end
printf('LBFGS: misfit %.5f, of which the noise is %.5f\n', misfit(p, x, y), misfit(true_p, x, y));
for k = 1:3
    printf('peak at %.3f (%.3f), height %.2f (%.2f), width %.2f (%.2f)\n', p.centre(k), ...
           true_p.centre(k), p.height(k), true_p.height(k), abs(p.width(k)), true_p.width(k));
end

given = argv();
if ~isempty(given)
    file = fopen(given{end}, 'w');
    fprintf(file, 'x,measured,start,fit\n');
    fprintf(file, '%.4f,%.4f,%.4f,%.4f\n', [x, y, start, model_of(p, x)]');
    fclose(file);
end
