classdef Optimizer < handle
    %OPTIMIZER One of PyTorch's optimizers, on arrays of yours.
    %
    %   opt = optplug.Optimizer(spec) makes the optimizer that spec names, a
    %   constructor call as PyTorch's documentation writes it, without the
    %   parameters: 'AdamW(lr=3e-4, betas=(0.9, 0.99))'.  PyTorch's documentation
    %   is the manual for names and defaults; optplug.list('optimizers') lists them.
    %
    %   params = step(opt, params, grads) makes a step.  params is a single or
    %   double array, or a cell array or a struct of such; grads has the same form.
    %
    %   Example:
    %       opt = optplug.Optimizer('Adam(lr=0.1)');
    %       w = [5; -3; 2];
    %       for i = 1:300
    %           w = opt.step(w, 2 * (w - [1; 2; 3]));   % the gradient of |w - [1 2 3]'|^2
    %       end
    %       disp(round(w'))
    %
    %   For LBFGS, and wherever a step is to ask for the loss itself, see
    %   step_closure.  A column-major matrix is one that PyTorch's LBFGS does not
    %   take: optplug.Optimizer(spec, 'flat') lets PyTorch see each array as a
    %   vector.  Otherwise it sees a vector, row or column, as 1-D, and other
    %   arrays with the size that they have here.
    %
    %   An optimizer is a handle: two variables may name one, and it ends with the
    %   last of them or with delete(opt).  What the library refuses is an error with
    %   its message and one of the identifiers optplug:invalid, optplug:handle,
    %   optplug:state, optplug:start, optplug:runtime, optplug:memory,
    %   optplug:nonfinite and optplug:io.
    %
    %   Optimizer methods:
    %       step             - Make a step, with arrays given or held.
    %       step_closure     - Make a step with a function that gives loss and gradients.
    %       bind             - Let the optimizer hold arrays of these values.
    %       data             - Get or set the values of the arrays held.
    %       grad             - Get or set their gradients.
    %       group            - Let the arrays bound from now on be a group of their own.
    %       zero_grad        - Set every gradient to zero.
    %       clip_grad_norm   - Scale the gradients so that their norm is at most this.
    %       clip_grad_value  - Clamp each value of each gradient.
    %       get              - Get a hyperparameter.
    %       set              - Set hyperparameters.
    %       schedule         - Attach a learning-rate scheduler.
    %       schedule_step    - Step the schedulers.
    %       average          - Average the parameters after each step.
    %       average_get      - Get the averages.
    %       average_swap     - Exchange the parameters with their averages.
    %       save             - Write the state into a file.
    %       load             - Go on from a file.
    %       save_memory      - Return the state as bytes.
    %       load_memory      - Go on from such bytes.
    %       describe         - Describe the optimizer in a few lines.
    %       delete           - End the optimizer.
    %
    %   See also optplug.init, optplug.list, optplug.describe.

    properties (SetAccess = private)
        Spec   % the constructor call
        Handle = -1 % the library's number for it, for a calllib of your own
    end

    properties (Access = private)
        IsFlat = false
        Parameters = struct('name', {}, 'class', {}, 'size', {}, 'shape', {}, 'data', {}, 'grad', {});
        Form = struct() % what data() returns: like this, an array, a cell array or a struct
        IsInStep = false % step_closure's function has failed, and the step waits for it
    end

    methods
        function self = Optimizer(spec, layout)
            %OPTIMIZER Make an optimizer: optplug.Optimizer(spec) or optplug.Optimizer(spec, 'flat').
            if nargin < 1
                optplug.internal.refuse('spec', 'text', []);
            end
            self.Spec = optplug.internal.text(spec, 'spec');
            if nargin > 1
                self.IsFlat = strcmp(optplug.internal.text(layout, 'layout'), 'flat');
                if ~self.IsFlat
                    optplug.internal.refuse('layout', '''flat''', layout);
                end
            end
            optplug.internal.start();
            handle = optplug.internal.call('optplug_create', self.Spec);
            self.Handle = handle;
            optplug.internal.check(handle);
        end

        function delete(self)
            %DELETE End the optimizer and release its state.
            if self.Handle > 0
                optplug.internal.call('optplug_free', self.Handle);
                self.Handle = -1;
            end
        end

        function bind(self, name, value)
            %BIND Let the optimizer hold arrays of these values, and of their gradients.
            %
            %   bind(opt, params) takes an array, a cell array or a struct, as step does,
            %   which does this by itself when nothing is bound.  The names that
            %   checkpoints have are a struct's own; 'x' for an array, and 'x1', 'x2', ...
            %   for a cell array's.
            %
            %   bind(opt, name, value) takes one array; with group, arrays can be in
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
            if nargin == 3
                self.bind_one(optplug.internal.text(name, 'name'), value);
                self.Form = struct();
            else
                [names, values] = parts(name, 'params');
                expected(name); % all are right before one is bound
                for i = 1:numel(values)
                    self.bind_one(names{i}, values{i});
                end
                if iscell(name)
                    self.Form = cell(size(name));
                elseif isstruct(name)
                    self.Form = struct();
                else
                    self.Form = [];
                end
            end
        end

        function params = step(self, params, grads)
            %STEP Make a step, with arrays given or held.
            %
            %   params = step(opt, params, grads) updates params from grads.  Both are an
            %   array, or a cell array or a struct of arrays, single or double, and always
            %   of the same sizes.  The first call binds them.  Your params do not change: a
            %   call that takes no output is refused.
            %
            %   step(opt) updates the arrays held from the gradients held: see bind, data
            %   and grad.  params = step(opt) returns them.
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
                need_output(nargout, 'params = step(opt, params, grads)');
                self.take(params, grads);
            end
            optplug.internal.check(optplug.internal.call('optplug_step', self.Handle));
            if nargin == 3
                params = self.fill(params, 'data');
            elseif nargout > 0
                params = self.data();
            end
        end

        function [params, loss] = step_closure(self, fun, params)
            %STEP_CLOSURE Make a step with a function that gives loss and gradients.
            %
            %   [params, loss] = step_closure(opt, fun, params) calls
            %   [loss, grads] = fun(params), which LBFGS wants several times a step and the
            %   others once, and returns the parameters after the step and the first loss.
            %   Without params, the arrays held are stepped.
            %
            %   If fun fails, the step waits for it where it is: the next step_closure
            %   calls its function at the same point and goes on from there.
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
                need_output(nargout, 'params = step_closure(opt, fun, params)');
                if ~self.IsInStep
                    self.take(params);
                end
            end
            loss = [];
            if ~self.IsInStep
                self.iterate(0);
            end
            while self.IsInStep
                [value, grads] = fun(self.fill(params, 'data'));
                value = optplug.internal.number(value, 'the loss that fun returns');
                self.put('grad', arrange(self.Parameters, grads, 'the gradient that fun returns'));
                if isempty(loss)
                    loss = value;
                end
                self.iterate(value);
            end
            params = self.fill(params, 'data');
        end

        function value = data(self, varargin)
            %DATA Get or set the values of the arrays held.
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
            [is_got, value] = self.access('data', varargin{:});
            if ~is_got
                clear value
            end
        end

        function value = grad(self, varargin)
            %GRAD Get or set the gradients of the arrays held, as data does their values.
            %
            %   Example:
            %       opt = optplug.Optimizer('SGD(lr=0.1)');
            %       opt.bind([1 2 3]);
            %       opt.grad([3 0 4]);
            %       norm = opt.clip_grad_norm(1);
            %       disp([norm opt.grad()])
            [is_got, value] = self.access('grad', varargin{:});
            if ~is_got
                clear value
            end
        end

        function group(self, options)
            %GROUP Let the arrays bound from now on be a group of their own.
            %
            %   group(opt, 'lr=1e-4, weight_decay=0'); see bind for an example.
            self.ask('optplug_group', optplug.internal.text(options, 'options'));
        end

        function zero_grad(self)
            %ZERO_GRAD Set every gradient to zero.
            self.ask('optplug_zero_grad');
        end

        function norm = clip_grad_norm(self, max_norm, norm_type, error_if_nonfinite)
            %CLIP_GRAD_NORM Scale the gradients together so that their norm is max_norm at most.
            %
            %   norm = clip_grad_norm(opt, max_norm) returns the norm that they had before.
            %   clip_grad_norm(opt, max_norm, norm_type) takes another than the 2-norm: Inf,
            %   say.  clip_grad_norm(opt, max_norm, norm_type, true) refuses a norm that is
            %   Inf or NaN.  The gradients are those held: see grad, which has an example.
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
            %   value = get(opt, 'lr') is that of all groups, where they agree;
            %   get(opt, 'betas[0]', 1) is that of one, and the first is 0, as in PyTorch.
            %
            %   Example:
            %       opt = optplug.Optimizer('Adam(lr=0.1)');
            %       opt.set('lr=0.2, betas=(0.8, 0.9)');
            %       disp([opt.get('lr') opt.get('betas[1]')])
            if nargin < 3
                group = -1;
            end
            [status, ~, value] = optplug.internal.call('optplug_get', self.Handle, group_number(group), ...
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
            self.ask('optplug_set', group_number(group), optplug.internal.text(options, 'options'));
        end

        function schedule(self, spec)
            %SCHEDULE Attach a scheduler of torch.optim.lr_scheduler, once every array is bound.
            %
            %   Those that take a function, LambdaLR for one, cannot be had here: use set.
            %   schedule(opt, []) takes all schedulers off; the learning rates stay as they are.
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
            %   schedule_step(opt) steps all but ReduceLROnPlateau, after a step.
            %   schedule_step(opt, metric) steps ReduceLROnPlateau by the loss it watches or,
            %   where none is attached, CosineAnnealingWarmRestarts by the epoch.
            if nargin < 2
                self.ask('optplug_schedule_step');
            else
                self.ask('optplug_schedule_step_metric', optplug.internal.number(metric, 'metric'));
            end
        end

        function average(self, spec)
            %AVERAGE Average the parameters after each step from now on.
            %
            %   average(opt, 'AveragedModel()') with equal weights; exponentially:
            %   average(opt, 'AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.999))').
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

        function value = average_get(self, name)
            %AVERAGE_GET Get the averages: all, in the form of the parameters, or one by its name.
            if nargin > 1
                value = self.average_of(self.position(name));
            else
                values = cell(1, numel(self.Parameters));
                for i = 1:numel(values)
                    values{i} = self.average_of(i);
                end
                value = self.formed(self.Form, values);
            end
        end

        function average_swap(self)
            %AVERAGE_SWAP Exchange the parameters with their averages; the next call takes them back.
            self.ask('optplug_average_swap');
        end

        function checkpoint(self, options)
            %CHECKPOINT Choose what save writes, and what load takes.
            %
            %   checkpoint(opt, 'parameters=True') puts the values of the parameters into
            %   the file, and out of it; checkpoint(opt, 'schedules=False') lets load leave
            %   schedulers and learning rates as they are.
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
            %ATTRIBUTE Attach a text of yours, which save writes and load brings back.
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
            %ATTRIBUTE_GET Return a text of yours; attribute has an example.
            name = optplug.internal.text(name, 'name');
            text = optplug.internal.call('optplug_attribute_get', self.Handle, name);
            if isempty(text) % none, or an empty one: an error that is sure to be another tells which
                optplug.internal.call('optplug_free', -1);
                text = optplug.internal.call('optplug_attribute_get', self.Handle, name);
                if strncmp(optplug.internal.call('optplug_error'), 'opt=-1 ', 7)
                    return
                end
            end
            optplug.internal.check_text(text);
        end

        function save(self, path)
            %SAVE Write all that the optimizer needs to go on into a file, which PyTorch reads.
            %
            %   The values of the parameters are yours to keep, or are in it with
            %   checkpoint(opt, 'parameters=True').
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
            %LOAD Go on from a file of save's, once the same arrays are bound; save has an example.
            self.ask('optplug_load', optplug.internal.text(path, 'path'));
        end

        function bytes = save_memory(self)
            %SAVE_MEMORY Return what save writes as a uint8 column, for a file of your own.
            size = optplug.internal.call('optplug_save_memory', self.Handle, [], 0);
            optplug.internal.check(size);
            block = optplug.internal.Block(zeros(size, 1, 'uint8'));
            size = optplug.internal.call('optplug_save_memory', self.Handle, block.Pointer, size);
            optplug.internal.check(size);
            bytes = block.read();
            bytes = bytes(1:size);
        end

        function load_memory(self, bytes)
            %LOAD_MEMORY Go on from what save_memory has returned.
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
            %SAVEOBJ Refuse to go into a MAT-file: the optimizer's state is in the library.
            value = []; % MATLAB asks for one
            error('optplug:invalid', 'an optimizer cannot be in a MAT-file: save(opt, path) writes its state');
        end
    end

    methods (Access = private)
        function ask(self, name, varargin)
            optplug.internal.check(optplug.internal.call(name, self.Handle, varargin{:}));
        end

        function iterate(self, loss)
            evaluate = 1; % OPT_EVALUATE
            status = optplug.internal.call('optplug_iterate', self.Handle, loss);
            self.IsInStep = status == evaluate;
            optplug.internal.check(status);
        end

        function bind_one(self, name, value)
            check_array(value, name);
            shape = size(value);
            if self.IsFlat || isvector(value) || isscalar(value)
                shape = numel(value);
            end
            strides = int64(cumprod([1 shape(1:end-1)])); % column-major
            dtypes = struct('double', 'float64', 'single', 'float32');
            entry = struct('name', name, 'class', class(value), 'size', size(value), 'shape', shape, ...
                'data', optplug.internal.Block(value), 'grad', optplug.internal.Block(zeros(size(value), class(value))));
            status = optplug.internal.call('optplug_bind_nd', self.Handle, name, dtypes.(class(value)), 'cpu', ...
                numel(shape), int64(shape), entry.data.Pointer, strides, entry.grad.Pointer, strides);
            if status >= 0 % kept before check, whose warnings may be errors
                at = find(strcmp(name, {self.Parameters.name}));
                if isempty(at)
                    at = numel(self.Parameters) + 1;
                end
                self.Parameters(at) = entry;
            end
            optplug.internal.check(status);
        end

        function take(self, params, grads)
            % Copy arrays in, but none before all are found right; the first ones are bound.
            wanted = self.Parameters;
            if isempty(wanted)
                wanted = expected(params);
            end
            values = arrange(wanted, params, 'params');
            if nargin > 2
                gradients = arrange(wanted, grads, 'grads');
            end
            if isempty(self.Parameters)
                self.bind(params);
            else
                self.put('data', values);
            end
            if nargin > 2
                self.put('grad', gradients);
            end
        end

        function put(self, what, values)
            for i = 1:numel(values)
                self.Parameters(i).(what).write(values{i});
            end
        end

        function container = fill(self, container, what)
            % Return a container of the same form with the values that are held.
            values = cell(1, numel(self.Parameters));
            for i = 1:numel(values)
                values{i} = self.Parameters(i).(what).read();
            end
            container = self.formed(container, values);
        end

        function container = formed(self, container, values)
            if isstruct(container)
                for i = 1:numel(values)
                    container.(self.Parameters(i).name) = values{i};
                end
            elseif iscell(container)
                container(1:numel(values)) = values;
            else
                container = values{1};
            end
        end

        function [is_got, value] = access(self, what, name, value)
            is_got = nargin == 2 || nargin == 3 && (ischar(name) || isa(name, 'string'));
            if nargin == 2
                value = self.fill(self.Form, what);
            elseif is_got
                value = self.Parameters(self.position(name)).(what).read();
            elseif nargin == 3
                self.put(what, arrange(self.Parameters, name, what));
                value = [];
            else
                name = optplug.internal.text(name, 'name');
                entry = self.Parameters(self.position(name));
                if ~isa(value, entry.class) || ~isequal(size(value), entry.size) || ~isreal(value) || issparse(value)
                    optplug.internal.refuse(name, optplug.internal.kind(zeros(entry.size, entry.class)), value);
                end
                entry.(what).write(value);
            end
        end

        function at = position(self, name)
            name = optplug.internal.text(name, 'name');
            at = find(strcmp(name, {self.Parameters.name}));
            if isempty(at)
                error('optplug:invalid', 'no parameter ''%s'' is bound', name);
            end
        end

        function value = average_of(self, at)
            entry = self.Parameters(at);
            block = optplug.internal.Block(zeros(entry.size, entry.class));
            self.ask('optplug_average_get', entry.name, block.Pointer);
            value = block.read();
            if numel(entry.shape) > 1 % it comes in C order
                last = numel(entry.shape);
                value = permute(reshape(value, entry.shape(last:-1:1)), last:-1:1);
            end
        end
    end
end

function [names, values] = parts(container, name)
% Take an array, a cell array or a struct apart.
if isstruct(container)
    if ~isscalar(container)
        optplug.internal.refuse(name, 'one struct', container);
    end
    names = fieldnames(container)';
    values = struct2cell(container)';
elseif iscell(container)
    values = container(:)';
    names = arrayfun(@(i) sprintf('x%d', i), 1:numel(values), 'UniformOutput', false);
else
    names = {'x'};
    values = {container};
end
end

function need_output(count, usage)
% Refuse a call on arrays of the caller's that takes no output: they do not change.
if count == 0
    error('optplug:invalid', ['a step of arrays that are given, whose result nobody takes, trains ' ...
        'nothing: write %s'], usage);
end
end

function text = label(container, name, i, names)
% Name one array of a container: 'grads.w', 'grads{2}'.
text = name;
if isstruct(container)
    text = [name '.' names{i}];
elseif iscell(container)
    text = sprintf('%s{%d}', name, i);
end
end

function values = arrange(wanted, container, name)
% Return the arrays in the order of those wanted, if there is the right one for each.
n = numel(wanted);
[names, values] = parts(container, name);
if isstruct(container)
    bound = {wanted.name};
    missing = bound(~isfield(container, bound));
    unknown = names(~ismember(names, bound));
    if ~isempty(missing)
        error('optplug:invalid', '%s has no field ''%s''', name, missing{1});
    elseif ~isempty(unknown)
        error('optplug:invalid', '%s has a field ''%s'', and no such parameter is bound', name, unknown{1});
    end
    names = bound;
    values = cellfun(@(field) container.(field), names, 'UniformOutput', false);
elseif numel(values) ~= n
    error('optplug:invalid', '%s must have %d arrays, as there are parameters, got %s', name, n, ...
        optplug.internal.kind(container));
end
for i = 1:n
    if ~isa(values{i}, wanted(i).class) || ~isequal(size(values{i}), wanted(i).size) || ...
            ~isreal(values{i}) || issparse(values{i})
        optplug.internal.refuse(label(container, name, i, names), ...
            optplug.internal.kind(zeros(wanted(i).size, wanted(i).class)), values{i});
    end
end
end

function wanted = expected(params)
% Return names, classes and sizes of arrays that can be bound.
[names, values] = parts(params, 'params');
for i = 1:numel(values)
    check_array(values{i}, label(params, 'params', i, names));
end
wanted = struct('name', names, 'class', cellfun(@class, values, 'UniformOutput', false), ...
    'size', cellfun(@size, values, 'UniformOutput', false));
end

function check_array(value, name)
if ~any(strcmp(class(value), {'double', 'single'})) || isempty(value) || ~isreal(value) || issparse(value)
    optplug.internal.refuse(name, 'a single or double array, real, full and not empty', value);
end
end

function number = group_number(group)
number = optplug.internal.number(group, 'group');
if number ~= fix(number)
    optplug.internal.refuse('group', 'a whole number', group);
end
end
