function run_tests()
%RUN_TESTS Run the tests below on whichever of calllib and the MEX file is on the path.
%
%   Prints a line for each, 'ok NAME' or 'failed NAME: why', and one for each run that
%   test_octave.py compares with PyTorch's.

tests = localfunctions();
for i = 1:numel(tests)
    name = func2str(tests{i});
    if strncmp(name, 'test_', 5)
        try
            tests{i}();
            printf('ok %s\n', name);
        catch problem
            printf('failed %s: %s: %s (line %d)\n', name, problem.identifier, ...
                strrep(problem.message, sprintf('\n'), ' | '), problem.stack(end).line);
        end
    end
end
runs = {@run_adam, @run_two_arrays, @run_lbfgs}; % which test_octave.py makes in PyTorch
for i = 1:numel(runs)
    printf('%s %s\n', func2str(runs{i}), strjoin(cellstr(num2hex(runs{i}()))', ' '));
end
end

function fails(identifier, message, call)
% Check that a call fails so, and that its message has these words.
failed = false;
try
    call();
catch problem
    failed = true;
    assert(problem.identifier, identifier);
    assert(~isempty(strfind(problem.message, message)), ['the message is: ' problem.message]);
end
assert(failed, 'nothing failed');
end

function taken(~)
% Take the output of a call that is to fail.
end

% ---- arrays ----

function test_an_array_is_stepped()
opt = optplug.Optimizer('SGD(lr=0.5)');
assert(opt.step([1 2; 3 4], [2 0; 0 2]), [0 2; 3 3]);
assert(opt.step([1 2; 3 4], [2 0; 0 2]), [0 2; 3 3]); % what is given counts, not what was held
end

function test_a_step_whose_result_nobody_takes_is_refused()
opt = optplug.Optimizer('SGD(lr=0.5)');
w = opt.step([1 2], [0 0]);
fails('optplug:invalid', 'this result would be lost: write params = step(opt, params, grads)', @() opt.step(w, w));
fails('optplug:invalid', 'write params = step_closure(opt, fun, params)', ...
    @() opt.step_closure(@(v) deal(0, v), w));
assert(opt.data(), [1 2]);
opt.grad([2 2]);
opt.step(); % what is held needs no output
opt.step_closure(@(w) deal(0, [2 2]));
assert(opt.data(), [-1 0]);
end

function test_a_cell_array_is_stepped()
opt = optplug.Optimizer('SGD(lr=0.5)');
params = opt.step({[1 2], single(3)}, {[2 2], single(2)});
assert(params, {[0 1], single(2)});
assert(opt.data('x2'), single(2));
end

function test_a_struct_is_stepped_by_its_names()
opt = optplug.Optimizer('SGD(lr=0.5)');
params = opt.step(struct('w', [1; 2], 'b', 3), struct('b', 2, 'w', [4; 4]));
assert(params, struct('w', [-1; 0], 'b', 2));
params = opt.step(struct('b', 1, 'w', [1; 1]), struct('w', [2; 2], 'b', 4));
assert(params, struct('b', -1, 'w', [0; 0]));
end

function test_arrays_are_held()
opt = optplug.Optimizer('SGD(lr=1.0)');
opt.bind('w', [1 2 3]);
opt.bind('b', single(4));
opt.grad('w', [1 1 1]);
opt.grad('b', single(2));
opt.step();
assert(opt.data(), struct('w', [0 1 2], 'b', single(2)));
opt.data(struct('b', single(7), 'w', [7 7 7]));
assert(opt.step(), struct('w', [6 6 6], 'b', single(5)));
assert(opt.grad(), struct('w', [1 1 1], 'b', single(2)));
end

function test_held_memory_stays_where_it_is()
% Much is assigned and made in between, and the steps still find their arrays.
opt = optplug.Optimizer('SGD(lr=1.0)');
opt.bind('w', zeros(1000, 1));
for i = 1:20
    opt.data('w', i * ones(1000, 1));
    opt.grad('w', ones(1000, 1));
    other = optplug.internal.Block(rand(1000, 1));
    opt.step();
    clear other
    assert(opt.data('w'), (i - 1) * ones(1000, 1));
end
end

function test_pytorch_sees_the_shape()
opt = optplug.Optimizer('SGD(lr=0.5)');
opt.bind(struct('m', ones(2, 3), 'row', [1 2], 'column', [1; 2; 3], 'one', 1, 'cube', ones(2, 1, 3)));
text = opt.describe();
for shape = {'''m'': group 0, cpu, float64 of shape (2, 3) with strides (1, 2)', ...
        '''row'': group 0, cpu, float64 of shape (2,)', '''column'': group 0, cpu, float64 of shape (3,)', ...
        '''one'': group 0, cpu, float64 of shape (1,)', ...
        '''cube'': group 0, cpu, float64 of shape (2, 1, 3) with strides (1, 2, 2)'}
    assert(~isempty(strfind(text, shape{1})), [shape{1} ' is not in ' text]);
end
assert(size(opt.data('cube')), [2 1 3]);
end

function test_flat_arrays_are_vectors_to_pytorch()
opt = optplug.Optimizer('SGD(lr=0.5)', 'flat');
assert(opt.step([1 2; 3 4], [2 0; 0 2]), [0 2; 3 3]);
assert(~isempty(strfind(opt.describe(), 'of shape (4,)')));
end

function test_binding_again_keeps_the_state()
opt = optplug.Optimizer('SGD(lr=1.0, momentum=1.0)');
assert(opt.step([0 0], [1 1]), [-1 -1]);
opt.bind('x', [5 5]);
opt.grad('x', [0 0]);
opt.step();
assert(opt.data('x'), [4 4]); % momentum
end

% ---- closures ----

function test_lbfgs_finds_the_minimum()
w = run_lbfgs();
assert(w(1:2), [1; 1], 1e-3);
end

function test_lbfgs_takes_a_matrix_flat()
target = [1 2; 3 4];
opt = optplug.Optimizer('LBFGS()', 'flat');
[w, loss] = opt.step_closure(@(w) deal(sum((w(:) - target(:)).^2), 2 * (w - target)), zeros(2));
assert(w, target, 1e-6);
assert(loss, 30);
end

function test_lbfgs_refuses_a_matrix_that_is_not_flat()
opt = optplug.Optimizer('LBFGS()');
fails('optplug:invalid', 'bind it as one flat array', @() taken(opt.step_closure(@(w) deal(0, w), ones(2))));
assert(~isempty(strfind(optplug.traceback(), 'view size is not compatible')));
end

function test_other_optimizers_ask_once()
opt = optplug.Optimizer('SGD(lr=0.5)');
[w, loss] = opt.step_closure(@(w) deal(w * w, 2 * w), 3);
assert([w loss], [0 9]);
opt.data(4);
[w, loss] = opt.step_closure(@(w) deal(w * w, 2 * w));
assert([w loss], [0 16]);
end

function test_a_step_waits_for_a_function_that_has_failed()
opt = optplug.Optimizer('LBFGS(line_search_fn=''strong_wolfe'')');
w = [-1; 1];
failures = 0;
calls = 0;
    function [loss, gradient] = flaky(w)
        calls = calls + 1;
        if mod(calls, 7) == 0
            error('mine:flaky', 'no loss today');
        end
        [loss, gradient] = banana(w);
    end
for i = 1:5
    made = false;
    while ~made
        try
            [w, loss] = opt.step_closure(@flaky, w);
            made = true;
        catch problem
            assert(problem.identifier, 'mine:flaky');
            failures = failures + 1;
            fails('optplug:state', 'in the middle of a step', @() opt.step());
        end
    end
end
assert(failures > 5);
assert(w, run_lbfgs()(1:2));
end

function test_gradients_are_compared_with_differences()
opt = optplug.Optimizer('Adam()');
assert(opt.check_gradient(@banana, [-1; 2]) < 1e-6);
fails('optplug:invalid', 'the gradient of parameter ''x'' is twice the derivative of the loss: at [', ...
    @() opt.check_gradient(@(w) deal(sum(w.^2), 4 * w)));
fails('mine:flaky', 'no loss', @() opt.check_gradient(@(w) error('mine:flaky', 'no loss')));
assert(opt.check_gradient(@banana) < 1e-6 && isequal(opt.data(), [-1; 2]));
end

function test_what_the_function_gives_is_checked()
opt = optplug.Optimizer('SGD(lr=0.5)');
fails('optplug:invalid', 'the loss that fun returns must be a real number, got a 1x2 double', ...
    @() taken(opt.step_closure(@(w) deal([1 2], w), 3)));
fails('optplug:invalid', 'the gradient that fun returns must be a 1x1 double, got a 2x2 double', ...
    @() taken(opt.step_closure(@(w) deal(1, ones(2)), 3)));
fails('optplug:invalid', 'fun must be a function handle, got ''banana''', @() taken(opt.step_closure('banana', 3)));
end

% ---- gradients, hyperparameters, schedules, averages ----

function test_gradients_are_zeroed_and_clipped()
opt = optplug.Optimizer('SGD(lr=0.5)');
opt.bind([1 2]);
opt.grad([3 4]);
assert(opt.clip_grad_norm(1), 5);
assert(opt.grad(), [0.6 0.8], 1e-6);
assert(opt.clip_grad_norm(10, Inf), 0.8, 1e-6);
opt.grad([3 -4]);
opt.clip_grad_value(3.5);
assert(opt.grad(), [3 -3.5]);
opt.zero_grad();
assert(opt.grad(), [0 0]);
end

function test_groups_have_options_of_their_own()
opt = optplug.Optimizer('SGD(lr=1.0)');
opt.bind('w', [1 1]);
opt.group('lr=0.5');
opt.bind('b', 1);
opt.grad(struct('w', [1 1], 'b', 1));
assert(opt.step(), struct('w', [0 0], 'b', 0.5));
assert([opt.get('lr', 0) opt.get('lr', 1)], [1 0.5]);
fails('optplug:invalid', 'lr', @() opt.get('lr'));
opt.set('lr=0.25', 1);
assert([opt.get('lr', 0) opt.get('lr', 1)], [1 0.25]);
opt.set('lr=2.0, momentum=0.5');
assert([opt.get('lr') opt.get('momentum')], [2 0.5]);
opt.set_value('lr', 0.25, 1);
assert([opt.get('lr', 0) opt.get('lr', 1)], [2 0.25]);
opt.set_value('lr', 0.5);
assert(opt.get('lr'), 0.5);
fails('optplug:invalid', 'lr=-1.0', @() opt.set_value('lr', -1));
end

function test_schedules_set_the_learning_rate()
opt = optplug.Optimizer('SGD(lr=1.0)');
opt.bind(1);
opt.schedule('StepLR(step_size=2, gamma=0.5)');
opt.schedule('ReduceLROnPlateau(patience=0, factor=0.1)');
seen = [];
for i = 1:4
    opt.grad(0);
    opt.step();
    opt.schedule_step();
    seen(end+1) = opt.get('lr');
end
assert(seen, [1 0.5 0.5 0.25]);
opt.schedule_step(1);
opt.schedule_step(2);
assert(opt.get('lr'), 0.025, 1e-15);
opt.schedule([]);
assert(opt.get('lr'), 0.025, 1e-15);
fails('optplug:state', 'there is no scheduler', @() opt.schedule_step());
end

function test_averages_are_made_and_swapped()
opt = optplug.Optimizer('SGD(lr=1.0)');
opt.bind(struct('m', [1 2 3; 4 5 6], 's', single(4)));
opt.average('AveragedModel()');
opt.grad(struct('m', ones(2, 3), 's', single(1)));
opt.step();
opt.step();
average = struct('m', [1 2 3; 4 5 6] - 1.5, 's', single(2.5));
assert(opt.average_get(), average);
assert(opt.average_get('m'), average.m);
opt.average_swap();
assert(opt.data(), average);
opt.average_swap();
assert(opt.data('s'), single(2));
fails('optplug:invalid', 'method ''eval'': SGD has no train()', @() opt.call('eval'));
end

function test_warnings_of_pytorch_are_warnings()
opt = optplug.Optimizer('SGD(lr=1.0)');
opt.bind(1);
opt.schedule('StepLR(step_size=2)');
lastwarn('');
evalc('opt.schedule_step()'); % before a step; evalc keeps it off the screen
[text, identifier] = lastwarn();
assert(identifier, 'optplug:warning');
assert(~isempty(strfind(text, 'lr_scheduler.step()')), text);
end

% ---- checkpoints ----

function test_a_run_goes_on_from_a_file_and_from_bytes()
file = [tempname() '.pt'];
opt = optplug.Optimizer('Adam(lr=0.1)');
w = [5 -3; 2 1];
for i = 1:5
    w = opt.step(w, 2 * w);
end
opt.save(file);
bytes = opt.save_memory();
assert(class(bytes), 'uint8');
from_file = optplug.Optimizer('Adam()');
from_file.bind(w);
from_file.load(file);
delete(file);
from_bytes = optplug.Optimizer('Adam()');
from_bytes.bind(w);
from_bytes.load_memory(bytes);
goes_on = opt.step(w, 2 * w);
assert(from_file.step(w, 2 * w), goes_on);
assert(from_bytes.step(w, 2 * w), goes_on);
anew = optplug.Optimizer('Adam(lr=0.1)');
assert(~isequal(anew.step(w, 2 * w), goes_on));
end

function test_parameters_come_out_of_the_file_where_they_are_in()
opt = optplug.Optimizer('SGD(lr=0.5)');
opt.bind([1 2; 3 4]);
opt.checkpoint('parameters=True');
bytes = opt.save_memory();
opt.data(zeros(2));
opt.load_memory(bytes);
assert(opt.data(), [1 2; 3 4]);
end

function test_texts_come_out_of_the_file()
opt = optplug.Optimizer('SGD(lr=0.5)');
opt.bind([1 2]);
opt.attribute('time', '12.5 h');
opt.attribute('empty', '');
opt.attribute('gone', 'x');
opt.attribute('gone', []);
bytes = opt.save_memory();
opt.attribute('time', 'x');
fails('optplug:invalid', 'no attribute ''gone''', @() opt.attribute_get('gone'));
opt.load_memory(bytes);
assert(opt.attribute_get('time'), '12.5 h');
assert(isempty(opt.attribute_get('empty')));
fails('optplug:invalid', 'no attribute ''gone''', @() opt.attribute_get('gone'));
assert(opt.step([1 2], [1 1]), [0.5 1.5]);
assert(opt.get('step'), 1);
end

function test_a_damaged_checkpoint_is_refused()
opt = optplug.Optimizer('SGD(lr=0.5)');
opt.bind([1 2]);
bytes = opt.save_memory();
bytes(100) = bitxor(bytes(100), 1);
fails('optplug:invalid', 'damaged', @() opt.load_memory(bytes));
fails('optplug:invalid', 'bytes must be uint8', @() opt.load_memory([1 2 3]));
fails('optplug:invalid', 'bytes must be uint8', @() opt.load_memory(uint8([])));
end

% ---- errors ----

function test_errors_have_the_librarys_message_and_an_identifier()
fails('optplug:invalid', 'Invalid learning rate: -1', @() optplug.Optimizer('Adam(lr=-1)'));
fails('optplug:invalid', 'no optimizer', @() optplug.Optimizer('Adamm()'));
opt = optplug.Optimizer('SGD(lr=0.5)');
fails('optplug:state', 'nothing is bound', @() opt.step());
opt.bind([1 2]);
fails('optplug:io', '/nowhere/x.pt', @() opt.save('/nowhere/x.pt'));
opt.grad([Inf 1]);
fails('optplug:nonfinite', 'non-finite', @() opt.clip_grad_norm(1, 2, true));
end

function test_a_deleted_optimizer_is_an_error()
opt = optplug.Optimizer('SGD(lr=0.5)');
same = opt;
opt.bind([1 2]);
assert(same.data(), [1 2]); % a copy is the same optimizer
handle = opt.Handle;
delete(opt);
fails('optplug:handle', 'is not an optimizer', @() opt.step());
fails('optplug:handle', 'is not an optimizer', @() taken(same.step([1 2], [1 2])));
fails('optplug:handle', 'is not an optimizer', @() opt.describe());
fails('optplug:handle', 'is not an optimizer', @() opt.save_memory());
fails('optplug:handle', 'is not an optimizer', @() opt.get('lr'));
assert(optplug.internal.call('optplug_free', handle) < 0); % freed, and not twice
delete(opt);
end

function test_an_optimizer_ends_with_its_last_variable()
opt = optplug.Optimizer('SGD(lr=0.5)');
handle = opt.Handle;
same = opt;
clear opt
assert(~isempty(optplug.internal.call('optplug_describe', handle)));
clear same
assert(isempty(optplug.internal.call('optplug_describe', handle)));
end

function test_an_optimizer_stays_out_of_mat_files()
opt = optplug.Optimizer('SGD(lr=0.5)');
fails('optplug:invalid', 'opt.save(path)', @() opt.saveobj());
end

function test_wrong_arrays_are_refused_by_name()
opt = optplug.Optimizer('SGD(lr=0.5)');
wanted = 'must be a real, full, non-empty single or double array, got ';
fails('optplug:invalid', ['params ' wanted 'a 1x2 int32'], @() taken(opt.step(int32([1 2]), int32([1 2]))));
fails('optplug:invalid', ['params ' wanted 'a 1x2 complex double'], @() taken(opt.step([1i 2], [1 2])));
fails('optplug:invalid', ['params ' wanted 'a 2x2 sparse double'], @() taken(opt.step(sparse(eye(2)), eye(2))));
fails('optplug:invalid', ['params ' wanted 'a 0x0 double'], @() taken(opt.step([], [])));
fails('optplug:invalid', ['params ' wanted '''text'''], @() taken(opt.step('text', 'text')));
fails('optplug:invalid', ['params.b ' wanted '1'], @() taken(opt.step(struct('w', 1, 'b', true), 1)));
fails('optplug:invalid', ['params{2} ' wanted 'a 1x2 logical'], @() taken(opt.step({1, [true false]}, 1)));
fails('optplug:invalid', 'params must be one struct, got a 1x2 struct', @() opt.bind(struct('w', {1, 2})));
fails('optplug:invalid', ['w ' wanted 'a 1x1 cell'], @() opt.bind('w', {1}));
fails('optplug:invalid', 'grads must have 2 arrays', @() taken(opt.step({1, 2}, {1})));
fails('optplug:invalid', 'grads.w must be a 1x2 double', @() taken(opt.step(struct('w', [1 2]), struct('w', 1))));
fails('optplug:state', 'nothing is bound', @() opt.step()); % still
opt.bind(struct('w', [1 2 3], 'b', single(1)));
fails('optplug:invalid', 'params.w must be a 1x3 double, got a 3x1 double', ...
    @() taken(opt.step(struct('w', [1; 2; 3], 'b', single(1)), 1)));
right = struct('w', [4 5 6], 'b', single(7));
fails('optplug:invalid', 'grads.b must be a 1x1 single, got 1', ...
    @() taken(opt.step(right, struct('w', [1 2 3], 'b', 1))));
fails('optplug:invalid', 'grads.w must be a 1x3 double, got a 1x3 complex double', ...
    @() taken(opt.step(right, struct('w', [1i 2 3], 'b', single(1)))));
fails('optplug:invalid', 'grads has no field ''b''', @() taken(opt.step(right, struct('w', [1 2 3]))));
fails('optplug:invalid', 'grads has a field ''c''', ...
    @() taken(opt.step(right, struct('w', [1 2 3], 'b', single(1), 'c', 1))));
fails('optplug:invalid', 'grads must have 2 arrays, one for each bound parameter, got a 1x3 cell', ...
    @() taken(opt.step(right, {1, 2, 3})));
fails('optplug:invalid', 'grads must have 2 arrays', @() taken(opt.step(right, 1)));
fails('optplug:invalid', 'step takes params and grads, or neither', @() taken(opt.step(right)));
fails('optplug:invalid', 'w must be a 1x3 double, got a 1x2 double', @() opt.data('w', [1 2]));
fails('optplug:invalid', 'no parameter ''v'' is bound', @() opt.data('v'));
fails('optplug:invalid', 'no parameter ''v'' is bound', @() opt.average_get('v'));
assert(opt.data(), struct('w', [1 2 3], 'b', single(1))); % nothing was changed
end

function test_other_arguments_are_refused_by_name()
fails('optplug:invalid', 'spec must be text, got 3', @() optplug.Optimizer(3));
fails('optplug:invalid', 'spec must be text', @() optplug.Optimizer());
fails('optplug:invalid', 'spec must be text, got a 2x2 char', @() optplug.Optimizer(['ab'; 'cd']));
fails('optplug:invalid', 'layout must be ''flat'', got ''round''', @() optplug.Optimizer('Adam()', 'round'));
opt = optplug.Optimizer('SGD(lr=0.5)');
opt.bind(1);
fails('optplug:invalid', 'max_norm must be a real number, got ''1''', @() opt.clip_grad_norm('1'));
fails('optplug:invalid', 'clip_value must be a real number, got a 1x2 double', @() opt.clip_grad_value([1 2]));
fails('optplug:invalid', 'group must be a whole number, got 0.5', @() opt.get('lr', 0.5));
fails('optplug:invalid', 'name must be text', @() opt.get(1));
fails('optplug:invalid', 'options must be text', @() opt.set(1));
fails('optplug:invalid', 'name must be text', @() opt.set_value(1, 1));
fails('optplug:invalid', 'value must be a real number, got ''1''', @() opt.set_value('lr', '1'));
fails('optplug:invalid', 'path must be text', @() opt.save(1));
fails('optplug:invalid', 'kind must be text', @() optplug.list(1));
fails('optplug:invalid', 'nothings', @() optplug.list('nothings'));
end

% ---- the package ----

function test_the_library_tells_of_itself()
assert(ischar(optplug.version()));
assert(~isempty(strfind(optplug.describe(), 'torch')));
assert(any(strcmp(optplug.list('schedulers'), 'StepLR')));
assert(~isempty(strfind(strjoin(optplug.list('Adam')', ' '), 'betas')));
end

function test_every_help_text_has_an_example_that_runs()
folder = fileparts(which('optplug.Optimizer'));
for file = dir(fullfile(folder, '*.m'))'
    code = fileread(fullfile(folder, file.name));
    examples = regexp(code, '% *Example:\n((?: *% {5,}[^\n]*\n)+)', 'tokens');
    assert(~isempty(examples), [file.name ' has none']);
    for i = 1:numel(examples)
        try_example(file.name, regexprep(examples{i}{1}, '(^|\n) *% *', '\n'));
    end
end
end

function try_example(name, code)
try
    printed = evalc(code);
catch problem
    error('%s: %s\n%s', name, problem.message, code);
end
if strcmp(name, 'Optimizer.m')
    assert(~isempty(strtrim(printed)), code);
end
end
