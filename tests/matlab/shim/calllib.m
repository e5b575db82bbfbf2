function varargout = calllib(alias, name, varargin)
%CALLLIB A stand-in for MATLAB's: pack the arguments as the prototype says, and call the thunk.
%
%   The results are the function's own, as a double, and one for each pointer argument.

library = shim_libraries(alias);
if isempty(library)
    error('MATLAB:calllib:NotFound', 'Library was not found');
elseif ~isfield(library.functions, name)
    error('MATLAB:calllib:MethodNotFound', 'Method was not found.');
end
found = library.functions.(name);
if numel(found.RHS) ~= numel(varargin)
    error('MATLAB:calllib:NoMatchingSignatureFound', 'No method with matching signature.');
end
stack = zeros(1, 0, 'uint8');
results = {};
temporaries = {}; % what MATLAB copies arrays into, for each pointer argument, and reads after the call
for i = 1:numel(varargin)
    type = found.RHS{i};
    if strcmp(type, 'cstring')
        [slot, keep] = text_slot(varargin{i});
        results{end+1} = varargin{i};
        temporaries{end+1} = [];
    elseif strcmp(type(max(1, end-2):end), 'Ptr')
        [slot, keep] = pointer_slot(varargin{i}, type);
        results{end+1} = varargin{i};
        temporaries{end+1} = keep;
    else
        slot = scalar_slot(varargin{i}, type);
        keep = [];
    end
    kept{i} = keep; % until the call is made
    stack = [stack slot];
end
own = {};
if isempty(found.LHS)
    shim_mex('call', found.thunk, found.address, stack, '');
else
    own = {shim_mex('call', found.thunk, found.address, stack, found.LHS)};
    if ~ischar(own{1})
        own{1} = double(typecast(own{1}, found.LHS));
    end
end
for i = find(~cellfun(@isempty, temporaries))
    results{i} = temporaries{i}.Value;
end
varargout = [own results];
if nargout > max(1, numel(varargout))
    error('MATLAB:calllib:NoMatchingSignatureFound', 'No method with matching signature.');
end
end

function slot = scalar_slot(value, type)
if ~(isnumeric(value) || islogical(value)) || ~isreal(value) || ~isscalar(value)
    error('MATLAB:class:RequireScalar', 'Parameter must be scalar.');
end
slot = typecast(cast(value, type), 'uint8'); % rounds and saturates
slot = [slot zeros(1, 8 - numel(slot), 'uint8')];
end

function [slot, keep] = text_slot(value)
keep = [];
address = uint64(0);
if ischar(value) && (size(value, 1) == 1 || isempty(value))
    keep = libpointer('uint8Ptr', [uint8(value(:)') 0]);
    address = keep.Address;
elseif ~isequal(value, [])
    error('MATLAB:libpointer:MustBeString', 'Parameter can not be converted to a character vector');
end
slot = typecast(address, 'uint8');
end

function [slot, keep] = pointer_slot(value, type)
keep = [];
if isa(value, 'libpointer')
    if ~any(strcmp(type, {'voidPtr', value.DataType}))
        error('MATLAB:libpointer:IllegalConversion', 'a %s is no %s', value.DataType, type);
    end
    address = value.Address;
elseif isnumeric(value) && isempty(value)
    address = uint64(0);
elseif isnumeric(value) && isreal(value)
    class_of = class(value);
    if ~strcmp(type, 'voidPtr')
        class_of = type(1:end-3);
    end
    keep = libpointer([class_of 'Ptr'], cast(value(:, :), class_of));
    address = keep.Address;
else
    error('MATLAB:libpointer:IllegalConversion', 'a %s is no %s', class(value), type);
end
slot = typecast(address, 'uint8');
end
