function library = shim_libraries(alias, library)
%SHIM_LIBRARIES Get or set what loadlibrary has loaded under a name; [] for nothing.

persistent all
if isempty(all)
    all = struct();
end
if nargin > 1
    all.(alias) = library;
end
library = [];
if isfield(all, alias)
    library = all.(alias);
end
end
