classdef Optimizer < handle
    %OPTIMIZER One of PyTorch's optimizers, for your own arrays.
    %
    %   opt = optplug.Optimizer(spec) creates an optimizer from a constructor call,
    %   written as in PyTorch's documentation, without the parameters:
    %   'AdamW(lr=3e-4, betas=(0.9, 0.99))'.  PyTorch's documentation is the manual
    %   for names and defaults; optplug.list('optimizers') lists the names.
    %
    %   params = step(opt, params, grads) makes a step.  params is a single or
    %   double array, or a cell array or struct of such arrays; grads has the same form.
    %
    %   Example:
    %       opt = optplug.Optimizer('Adam(lr=0.1)');
    %       w = [5; -3; 2];
    %       for i = 1:300
    %           w = opt.step(w, 2 * (w - [1; 2; 3]));   % the gradient of |w - [1 2 3]'|^2
    %       end
    %       disp(round(w'))
    %
    %   LBFGS evaluates the loss itself: see step_closure.  It rejects MATLAB's
    %   column-major matrices, but optplug.Optimizer(spec, 'flat') shows each array
    %   to PyTorch as a vector.  Without 'flat', PyTorch sees a row or column as 1-D,
    %   and any other array with the size that it has in MATLAB.
    %
    %   An optimizer is a handle object: copies of the variable refer to the same
    %   optimizer, which is freed with the last of them or by delete(opt).  Errors
    %   have the library's message and one of the identifiers optplug:invalid,
    %   optplug:handle, optplug:state, optplug:start, optplug:runtime,
    %   optplug:memory, optplug:nonfinite and optplug:io.
    %
    %   Optimizer methods:
    %       step             - Make a step, with arrays you pass or those bound.
    %       step_closure     - Make a step with a function that returns loss and gradients.
    %       check_gradient   - Check that function's gradients against differences of its losses.
    %       bind             - Copy parameters into the optimizer.
    %       data             - Get or set the parameters that it holds.
    %       grad             - Get or set their gradients.
    %       group            - Start a parameter group.
    %       zero_grad        - Set every gradient to zero.
    %       clip_grad_norm   - Limit the norm of all gradients together.
    %       clip_grad_value  - Clamp each value of each gradient.
    %       get              - Get a hyperparameter.
    %       set              - Set hyperparameters.
    %       set_value        - Set one hyperparameter, fast.
    %       schedule         - Attach a learning-rate scheduler.
    %       schedule_step    - Step the schedulers.
    %       average          - Average the parameters after each step.
    %       average_get      - Get the averages.
    %       average_swap     - Swap the parameters with their averages.
    %       call             - Call a method of a class outside torch.optim.
    %       checkpoint       - Choose what save writes and load restores.
    %       attribute        - Attach a text of yours to checkpoints.
    %       attribute_get    - Return such a text.
    %       save             - Save the state to a file.
    %       load             - Resume from a file.
    %       save_memory      - Return the state as bytes.
    %       load_memory      - Resume from such bytes.
    %       describe         - Describe the optimizer in a few lines.
    %       delete           - Free the optimizer.
    %
    %   See also optplug.init, optplug.list, optplug.describe.

    properties (SetAccess = private)
        Spec   % the constructor call
        Handle = -1 % the C library's handle, for your own calllib
    end

    properties (Access = private)
        Arrays % the bound arrays
        IsInStep = false % a step is waiting for another evaluation
    end

    methods
        function self = Optimizer(spec, layout)
            %OPTIMIZER Create an optimizer: optplug.Optimizer(spec) or optplug.Optimizer(spec, 'flat').
            if nargin < 1
                optplug.internal.refuse('spec', 'text', []);
            end
            self.Spec = optplug.internal.text(spec, 'spec');
            is_flat = nargin > 1 && strcmp(optplug.internal.text(layout, 'layout'), 'flat');
            if nargin > 1 && ~is_flat
                optplug.internal.refuse('layout', '''flat''', layout);
            end
            optplug.internal.start();
            handle = optplug.internal.call('optplug_create', self.Spec);
            self.Handle = handle;
            optplug.internal.check(handle);
            self.Arrays = optplug.internal.Arrays(handle, is_flat);
        end

        function delete(self)
            %DELETE Free the optimizer and its state.
            if self.Handle > 0
                optplug.internal.call('optplug_free', self.Handle);
                self.Handle = -1;
            end
        end

        function bind(self, name, varargin)
            %BIND Copy parameters into the optimizer, which then holds them and their gradients.
            %
            %   bind(opt, params) takes an array, a cell array or a struct.  The first step
            %   or step_closure with params does the same.  Parameters are named in
            %   checkpoints: by a struct's field names; as 'x' for an array; as 'x1', 'x2',
            %   ... for a cell array.
            %
            %   bind(opt, name, value) takes one array, so that group can put arrays into
            %   different groups.  Binding a name again, with the same size, keeps its state.
            %
            %   Example:
            %       opt = optplug.Optimizer('SGD(lr=0.1)');
            %       opt.bind('weight', ones(2, 3));
            %       opt.group('lr=0.01');
            %       opt.bind('bias', [0; 0]);
            %       opt.grad(struct('weight', ones(2, 3), 'bias', [1; 1]));
            %       opt.step();
            %       disp(opt.data('bias')')
            self.Arrays.bind(name, varargin{:});
        end

        function params = step(self, params, grads)
            %STEP Make a step, with arrays you pass or those bound.
            %
            %   params = step(opt, params, grads) updates params from grads.  Each is an
            %   array, or a cell array or struct of arrays, single or double; their sizes
            %   must not change between calls.  The first call binds them.  The result is
            %   params, so a call without an output is an error.
            %
            %   step(opt) updates the bound arrays from the gradients set by grad: see bind
            %   and data.  params = step(opt) also returns them.
            %
            %   Example:
            %       opt = optplug.Optimizer('SGD(lr=0.5)');
            %       params = struct('w', [1 2; 3 4], 'b', single([5 6]));
            %       grads = struct('w', ones(2), 'b', single([1 1]));
            %       params = opt.step(params, grads);
            %       disp(params.b)
            if nargin == 2
                error('optplug:invalid', 'step takes params and grads, or neither');
            elseif nargin == 3
                optplug.internal.need_output(nargout, 'params = step(opt, params, grads)');
                self.Arrays.take(params, grads);
            end
            optplug.internal.check(optplug.internal.call('optplug_step', self.Handle));
            if nargin == 3
                params = self.Arrays.fill(params, 'data');
            elseif nargout > 0
                params = self.data();
            end
        end

        function [params, loss] = step_closure(self, fun, params)
            %STEP_CLOSURE Make a step with a function that returns loss and gradients.
            %
            %   [params, loss] = step_closure(opt, fun, params) calls
            %   [loss, grads] = fun(params), several times for LBFGS and once for other
            %   classes, and returns the parameters after the step and the first loss.
            %   Without params, it steps the bound arrays.
            %
            %   If fun fails, the step is suspended: the next step_closure calls its
            %   function at the same point and continues from there.
            %
            %   Example:
            %       opt = optplug.Optimizer('LBFGS(line_search_fn=''strong_wolfe'')');
            %       banana = @(w) deal((1 - w(1))^2 + 100 * (w(2) - w(1)^2)^2, ...
            %           [2 * (w(1) - 1) - 400 * w(1) * (w(2) - w(1)^2); 200 * (w(2) - w(1)^2)]);
            %       w = [-1; 1];
            %       for i = 1:5
            %           [w, loss] = opt.step_closure(banana, w);
            %       end
            %       disp(round(w'))
            if nargin < 2 || ~isa(fun, 'function_handle')
                optplug.internal.refuse('fun', 'a function handle', fun);
            end
            if nargin < 3
                params = self.data();
            else
                optplug.internal.need_output(nargout, 'params = step_closure(opt, fun, params)');
                if ~self.IsInStep
                    self.Arrays.take(params);
                end
            end
            loss = [];
            if ~self.IsInStep
                self.iterate(0);
            end
            while self.IsInStep
                [value, grads] = fun(self.Arrays.fill(params, 'data'));
                value = optplug.internal.number(value, 'the loss that fun returns');
                self.Arrays.put('grad', grads, 'the gradient that fun returns');
                if isempty(loss)
                    loss = value;
                end
                self.iterate(value);
            end
            params = self.Arrays.fill(params, 'data');
        end

        function relative_error = check_gradient(self, fun, params)
            %CHECK_GRADIENT Check a function's gradients against differences of its losses.
            %
            %   relative_error = check_gradient(opt, fun, params), with fun as in
            %   step_closure, raises an error if a gradient is wrong, which says where and,
            %   if possible, what the mistake is.  Otherwise it returns the largest relative
            %   error.  Without params, it checks at the bound arrays.
            %
            %   Example:
            %       opt = optplug.Optimizer('Adam()');
            %       square = @(w) deal(sum(w.^2), 2 * w);
            %       disp(opt.check_gradient(square, [1; 2]) < 1e-6)
            if nargin < 2 || ~isa(fun, 'function_handle')
                optplug.internal.refuse('fun', 'a function handle', fun);
            end
            if nargin > 2
                self.Arrays.take(params);
            end
            value = 0;
            while true
                [status, relative_error] = self.check_on(value);
                optplug.internal.check(status);
                if status == 0
                    return
                end
                try
                    [value, grads] = fun(self.data());
                    value = optplug.internal.number(value, 'the loss that fun returns');
                    self.Arrays.put('grad', grads, 'the gradient that fun returns');
                catch problem
                    self.check_on(NaN); % a loss that ends the check
                    rethrow(problem);
                end
            end
        end

        function value = data(self, varargin)
            %DATA Get or set the parameters that the optimizer holds.
            %
            %   params = data(opt) returns all of them, in the form in which they were bound.
            %   value = data(opt, name) returns one.
            %   data(opt, params) sets all, and data(opt, name, value) one.
            %
            %   Example:
            %       opt = optplug.Optimizer('SGD(lr=0.1)');
            %       opt.bind('w', [1 2 3]);
            %       opt.data('w', [4 5 6]);
            %       disp(opt.data('w'))
            [is_got, value] = self.Arrays.access('data', varargin{:});
            if ~is_got
                clear value
            end
        end

        function value = grad(self, varargin)
            %GRAD Get or set the gradients that the optimizer holds, as data does the parameters.
            %
            %   Example:
            %       opt = optplug.Optimizer('SGD(lr=0.1)');
            %       opt.bind([1 2 3]);
            %       opt.grad([3 0 4]);
            %       norm = opt.clip_grad_norm(1);
            %       disp([norm opt.grad()])
            [is_got, value] = self.Arrays.access('grad', varargin{:});
            if ~is_got
                clear value
            end
        end

        function group(self, options)
            %GROUP Start a parameter group: arrays bound from now on use these options.
            %
            %   group(opt, 'lr=1e-4, weight_decay=0'); see bind for an example.
            self.ask('optplug_group', optplug.internal.text(options, 'options'));
        end

        function zero_grad(self)
            %ZERO_GRAD Set every gradient to zero.
            self.ask('optplug_zero_grad');
        end

        function norm = clip_grad_norm(self, max_norm, norm_type, error_if_nonfinite)
            %CLIP_GRAD_NORM Scale the gradients together so that their norm is at most max_norm.
            %
            %   norm = clip_grad_norm(opt, max_norm) returns the norm before scaling.
            %   clip_grad_norm(opt, max_norm, norm_type) uses another norm than the 2-norm,
            %   such as Inf.  clip_grad_norm(opt, max_norm, norm_type, true) makes a norm of
            %   Inf or NaN an error.  It scales the gradients set by grad, which has an example.
            if nargin < 3
                norm_type = 2;
            end
            if nargin < 4
                error_if_nonfinite = false;
            end
            [status, norm] = optplug.internal.call('optplug_clip_grad_norm', self.Handle, ...
                optplug.internal.number(max_norm, 'max_norm'), ...
                optplug.internal.number(norm_type, 'norm_type'), ...
                double(optplug.internal.number(error_if_nonfinite, 'error_if_nonfinite') ~= 0), 0);
            optplug.internal.check(status);
        end

        function clip_grad_value(self, clip_value)
            %CLIP_GRAD_VALUE Clamp each value of each gradient to -clip_value ... clip_value.
            self.ask('optplug_clip_grad_value', optplug.internal.number(clip_value, 'clip_value'));
        end

        function value = get(self, name, group)
            %GET Get a hyperparameter.
            %
            %   value = get(opt, 'lr') is the value in all groups, which must agree;
            %   get(opt, 'betas[0]', 1) is the value in group 1.  Group 0 is the first, as in PyTorch.
            %
            %   Example:
            %       opt = optplug.Optimizer('Adam(lr=0.1)');
            %       opt.set('lr=0.2, betas=(0.8, 0.9)');
            %       disp([opt.get('lr') opt.get('betas[1]')])
            if nargin < 3
                group = -1;
            end
            [status, ~, value] = optplug.internal.call('optplug_get', self.Handle, optplug.internal.group_number(group), ...
                optplug.internal.text(name, 'name'), 0);
            optplug.internal.check(status);
        end

        function set(self, options, group)
            %SET Set hyperparameters.
            %
            %   set(opt, 'lr=1e-4, weight_decay=0') sets those of all groups, and
            %   set(opt, options, 0) those of the first; get has an example.
            if nargin < 3
                group = -1;
            end
            self.ask('optplug_set', optplug.internal.group_number(group), optplug.internal.text(options, 'options'));
        end

        function set_value(self, name, value, group)
            %SET_VALUE Set one hyperparameter: set_value(opt, 'lr', 1e-4), or of group 0 only,
            %   set_value(opt, 'lr', 1e-4, 0).  For values that change at every step.
            if nargin < 4
                group = -1;
            end
            self.ask('optplug_set_value', optplug.internal.group_number(group), ...
                optplug.internal.text(name, 'name'), optplug.internal.number(value, 'value'));
        end

        function schedule(self, spec)
            %SCHEDULE Attach a scheduler of torch.optim.lr_scheduler, once every array is bound.
            %
            %   Schedulers that take a function, such as LambdaLR, are not available in MATLAB
            %   and Octave: call set_value before each step instead.
            %   schedule(opt, []) removes all schedulers; learning rates keep their current values.
            %
            %   Example:
            %       opt = optplug.Optimizer('SGD(lr=1.0)');
            %       opt.bind([1 2]);
            %       opt.schedule('StepLR(step_size=10)');
            %       for i = 1:20
            %           opt.grad([1 1]);
            %           opt.step();
            %           opt.schedule_step();
            %       end
            %       disp(opt.get('lr'))
            if ~isequal(spec, [])
                spec = optplug.internal.text(spec, 'spec');
            end
            self.ask('optplug_schedule', spec);
        end

        function schedule_step(self, metric)
            %SCHEDULE_STEP Step the schedulers.
            %
            %   schedule_step(opt), after a step, steps all but ReduceLROnPlateau.
            %   schedule_step(opt, metric) steps ReduceLROnPlateau, which watches a loss; if
            %   none is attached, it sets the epoch of CosineAnnealingWarmRestarts.
            if nargin < 2
                self.ask('optplug_schedule_step');
            else
                self.ask('optplug_schedule_step_metric', optplug.internal.number(metric, 'metric'));
            end
        end

        function average(self, spec)
            %AVERAGE Average the parameters after each step from now on.
            %
            %   average(opt, 'AveragedModel()') weights all steps equally;
            %   average(opt, 'AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.999))') is an
            %   exponential average.
            %
            %   Example:
            %       opt = optplug.Optimizer('SGD(lr=1.0)');
            %       opt.bind(4);
            %       opt.average('AveragedModel()');
            %       opt.grad(1);
            %       opt.step();
            %       opt.step();
            %       disp([opt.data() opt.average_get()])
            self.ask('optplug_average', optplug.internal.text(spec, 'spec'));
        end

        function value = average_get(self, varargin)
            %AVERAGE_GET Get the averages: all, in the form of the parameters, or one by name.
            value = self.Arrays.average(varargin{:});
        end

        function average_swap(self)
            %AVERAGE_SWAP Swap the parameters with their averages; the next call swaps them back.
            self.ask('optplug_average_swap');
        end

        function call(self, method)
            %CALL Call a method of a class outside torch.optim: 'train' or 'eval' of a schedule-free one.
            self.ask('optplug_call', optplug.internal.text(method, 'method'));
        end

        function checkpoint(self, options)
            %CHECKPOINT Choose what save writes and load restores.
            %
            %   checkpoint(opt, 'parameters=True') includes the values of the parameters.
            %   After checkpoint(opt, 'schedules=False'), load keeps the current schedulers and
            %   learning rates.
            %
            %   Example:
            %       opt = optplug.Optimizer('Adam()');
            %       opt.bind([1 2 3]);
            %       opt.checkpoint('parameters=True');
            %       bytes = opt.save_memory();
            %       opt.data([0 0 0]);
            %       opt.load_memory(bytes);
            %       disp(opt.data())
            self.ask('optplug_checkpoint', optplug.internal.text(options, 'options'));
        end

        function attribute(self, name, text)
            %ATTRIBUTE Attach a text of yours, which save writes and load restores.
            %
            %   attribute(opt, name, []) removes it.
            %
            %   Example:
            %       opt = optplug.Optimizer('Adam()');
            %       opt.bind([1 2 3]);
            %       opt.attribute('time', '12.5 h');
            %       bytes = opt.save_memory();
            %       opt.attribute('time', []);
            %       opt.load_memory(bytes);
            %       disp(opt.attribute_get('time'))
            if ~isequal(text, []) || ischar(text)
                text = optplug.internal.text(text, 'text');
            end
            self.ask('optplug_attribute', optplug.internal.text(name, 'name'), text);
        end

        function text = attribute_get(self, name)
            %ATTRIBUTE_GET Return an attached text; attribute has an example.
            text = optplug.internal.attribute(self.Handle, optplug.internal.text(name, 'name'));
        end

        function save(self, path)
            %SAVE Save everything the optimizer needs to resume to a file, which PyTorch can read.
            %
            %   The parameters' values are yours to keep, unless checkpoint(opt, 'parameters=True')
            %   includes them.
            %
            %   Example:
            %       file = [tempname() '.pt'];
            %       opt = optplug.Optimizer('Adam()');
            %       w = opt.step([1 2 3], [1 1 1]);
            %       opt.save(file);
            %       again = optplug.Optimizer('Adam()');
            %       again.bind(w);
            %       again.load(file);
            %       disp(isequal(again.step(w, w), opt.step(w, w)))
            %       delete(file);
            self.ask('optplug_save', optplug.internal.text(path, 'path'));
        end

        function load(self, path)
            %LOAD Resume from a saved file, once the same arrays are bound; save has an example.
            self.ask('optplug_load', optplug.internal.text(path, 'path'));
        end

        function bytes = save_memory(self)
            %SAVE_MEMORY Return what save writes, as a uint8 column, for your own file.
            size = optplug.internal.call('optplug_save_memory', self.Handle, [], 0);
            optplug.internal.check(size);
            block = optplug.internal.Block(zeros(size, 1, 'uint8'));
            size = optplug.internal.call('optplug_save_memory', self.Handle, block.Pointer, size);
            optplug.internal.check(size);
            bytes = block.read();
            bytes = bytes(1:size);
        end

        function load_memory(self, bytes)
            %LOAD_MEMORY Resume from what save_memory returned.
            if ~isa(bytes, 'uint8') || isempty(bytes)
                optplug.internal.refuse('bytes', 'uint8, as save_memory returns it', bytes);
            end
            block = optplug.internal.Block(bytes(:));
            self.ask('optplug_load_memory', block.Pointer, numel(bytes));
        end

        function text = describe(self)
            %DESCRIBE Describe the optimizer in a few lines of "name: value".
            text = optplug.internal.call('optplug_describe', self.Handle);
            optplug.internal.check_text(text);
        end

        function disp(self)
            %DISP Show what describe says.
            disp(self.describe());
        end

        function value = saveobj(~)
            %SAVEOBJ Refuse to be saved in a MAT-file: the optimizer's state is in the library.
            value = []; % MATLAB asks for one
            error('optplug:invalid', 'an optimizer cannot be saved in a MAT-file: write its state by opt.save(path)');
        end
    end

    methods (Access = private)
        function ask(self, name, varargin)
            optplug.internal.check(optplug.internal.call(name, self.Handle, varargin{:}));
        end

        function [status, relative_error] = check_on(self, loss)
            [status, relative_error] = ...
                optplug.internal.call('optplug_check_gradient_iterate', self.Handle, loss, 0);
        end

        function iterate(self, loss)
            evaluate = 1; % OPT_EVALUATE
            status = optplug.internal.call('optplug_iterate', self.Handle, loss);
            self.IsInStep = status == evaluate;
            optplug.internal.check(status);
        end

    end
end
