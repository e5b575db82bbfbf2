function start()
%START Load the library unless it is loaded.

if optplug.internal.uses_mex()
    return
end
if exist('OCTAVE_VERSION', 'builtin') && isempty(which('loadlibrary'))
    error('optplug:start', 'Octave calls optplug through a MEX file: run optplug.build once to make it');
end
if ~libisloaded('liboptplug')
    [~, ~, ~, library] = liboptplug_proto(); % the thunk library, which also gives access to the functions
    loadlibrary(library, @liboptplug_proto, 'alias', 'liboptplug');
end
end
