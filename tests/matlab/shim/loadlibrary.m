function loadlibrary(file, prototype, option, alias)
%LOADLIBRARY A stand-in for MATLAB's, with a prototype file and a thunk library.

if ~strcmp(option, 'alias')
    error('shim:option', 'the option ''%s'' is not known here', option);
end
[functions, ~, ~, thunks] = prototype();
suffix = '.so';
if ismac()
    suffix = '.dylib';
end
library.handle = shim_mex('open', [file suffix]);
thunk_library = shim_mex('open', [thunks suffix]);
library.functions = struct();
for i = 1:numel(functions.name)
    found.address = shim_mex('find', library.handle, functions.name{i});
    found.thunk = shim_mex('find', thunk_library, functions.thunkname{i});
    if found.address == 0 || found.thunk == 0
        error('shim:notfound', '%s or %s was not found', functions.name{i}, functions.thunkname{i});
    end
    found.LHS = functions.LHS{i};
    found.RHS = functions.RHS{i};
    library.functions.(functions.name{i}) = found;
end
shim_libraries(alias, library);
end
