classdef Arrays < handle
    %ARRAYS The arrays that an optimizer holds: copies of the caller's parameters, and their gradients.

    properties (SetAccess = private)
        Entries = struct('name', {}, 'class', {}, 'size', {}, 'shape', {}, 'data', {}, 'grad', {});
    end

    properties (Access = private)
        Handle
        IsFlat
        Form = struct() % the form in which access returns all: an array ([]), a cell array or a struct
    end

    methods
        function self = Arrays(handle, is_flat)
            %ARRAYS Start with none, for an optimizer's handle; is_flat shows each to PyTorch as a vector.
            self.Handle = handle;
            self.IsFlat = is_flat;
        end

        function bind(self, name, value)
            %BIND Copy arrays in: see optplug.Optimizer.bind.
            if nargin == 3
                self.bind_one(optplug.internal.text(name, 'name'), value);
                self.Form = struct();
            else
                [names, values] = parts(name, 'params');
                expected(name); % check all before binding one
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

        function take(self, params, grads)
            %TAKE Copy arrays in, once all are checked; bind them if none are bound.
            wanted = self.Entries;
            if isempty(wanted)
                wanted = expected(params);
            end
            values = arrange(wanted, params, 'params');
            if nargin > 2
                gradients = arrange(wanted, grads, 'grads');
            end
            if isempty(self.Entries)
                self.bind(params);
            else
                self.write('data', values);
            end
            if nargin > 2
                self.write('grad', gradients);
            end
        end

        function put(self, what, container, name)
            %PUT Copy arrays in from a container of the same form, which errors call by name.
            self.write(what, arrange(self.Entries, container, name));
        end

        function container = fill(self, container, what)
            %FILL Return a container of the same form with the values held here.
            values = cell(1, numel(self.Entries));
            for i = 1:numel(values)
                values{i} = self.Entries(i).(what).read();
            end
            container = self.formed(container, values);
        end

        function value = average(self, name)
            %AVERAGE Return the averages: all, or one by name.
            if nargin > 1
                value = self.average_of(self.position(name));
            else
                values = arrayfun(@(i) self.average_of(i), 1:numel(self.Entries), 'UniformOutput', false);
                value = self.formed(self.Form, values);
            end
        end

        function [is_got, value] = access(self, what, name, value)
            %ACCESS Get or set all, or one by name: see optplug.Optimizer.data.
            is_got = nargin == 2 || nargin == 3 && (ischar(name) || isa(name, 'string'));
            if nargin == 2
                value = self.fill(self.Form, what);
            elseif is_got
                value = self.Entries(self.position(name)).(what).read();
            elseif nargin == 3
                self.put(what, name, what);
                value = [];
            else
                name = optplug.internal.text(name, 'name');
                entry = self.Entries(self.position(name));
                if ~isa(value, entry.class) || ~isequal(size(value), entry.size) || ~isreal(value) || issparse(value)
                    optplug.internal.refuse(name, optplug.internal.kind(zeros(entry.size, entry.class)), value);
                end
                entry.(what).write(value);
            end
        end

        function at = position(self, name)
            %POSITION Return the number of the array with this name.
            name = optplug.internal.text(name, 'name');
            at = find(strcmp(name, {self.Entries.name}));
            if isempty(at)
                error('optplug:invalid', 'no parameter ''%s'' is bound', name);
            end
        end

    end

    methods (Access = private)
        function value = average_of(self, at)
            entry = self.Entries(at);
            block = optplug.internal.Block(zeros(entry.size, entry.class));
            optplug.internal.check(optplug.internal.call('optplug_average_get', self.Handle, entry.name, block.Pointer));
            value = block.read();
            if numel(entry.shape) > 1 % it arrives in C order
                last = numel(entry.shape);
                value = permute(reshape(value, entry.shape(last:-1:1)), last:-1:1);
            end
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
            if status >= 0 % keep it before check, whose warnings may be errors
                at = find(strcmp(name, {self.Entries.name}));
                if isempty(at)
                    at = numel(self.Entries) + 1;
                end
                self.Entries(at) = entry;
            end
            optplug.internal.check(status);
        end

        function write(self, what, values)
            for i = 1:numel(values)
                self.Entries(i).(what).write(values{i});
            end
        end

        function container = formed(self, container, values)
            if isstruct(container)
                for i = 1:numel(values)
                    container.(self.Entries(i).name) = values{i};
                end
            elseif iscell(container)
                container(1:numel(values)) = values;
            else
                container = values{1};
            end
        end
    end
end

function [names, values] = parts(container, name)
% Split an array, a cell array or a struct into names and values.
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
% Return the arrays in the order of those wanted; raise an error if one is missing or differs.
n = numel(wanted);
[names, values] = parts(container, name);
if isstruct(container)
    bound = {wanted.name};
    missing = bound(~isfield(container, bound));
    unknown = names(~ismember(names, bound));
    if ~isempty(missing)
        error('optplug:invalid', '%s has no field ''%s''', name, missing{1});
    elseif ~isempty(unknown)
        error('optplug:invalid', '%s has a field ''%s'', but no parameter of that name is bound', name, unknown{1});
    end
    names = bound;
    values = cellfun(@(field) container.(field), names, 'UniformOutput', false);
elseif numel(values) ~= n
    error('optplug:invalid', '%s must have %d arrays, one for each bound parameter, got %s', name, n, ...
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
% Return names, classes and sizes of arrays, all of which can be bound.
[names, values] = parts(params, 'params');
for i = 1:numel(values)
    check_array(values{i}, label(params, 'params', i, names));
end
wanted = struct('name', names, 'class', cellfun(@class, values, 'UniformOutput', false), ...
    'size', cellfun(@size, values, 'UniformOutput', false));
end

function check_array(value, name)
if ~any(strcmp(class(value), {'double', 'single'})) || isempty(value) || ~isreal(value) || issparse(value)
    optplug.internal.refuse(name, 'a real, full, non-empty single or double array', value);
end
end
