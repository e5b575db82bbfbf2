function start()
%START Load the library, if it is not.

if optplug.internal.uses_mex()
    return
end
if exist('OCTAVE_VERSION', 'builtin') && isempty(which('loadlibrary'))
    error('optplug:start', 'Octave calls optplug through a MEX file: optplug.build makes it, once');
end
if ~libisloaded('liboptplug')
    [~, ~, ~, library] = liboptplug_proto(); % the thunks, through which the functions are found as well
    loadlibrary(library, @liboptplug_proto, 'alias', 'liboptplug');
end
end
