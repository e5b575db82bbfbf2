function build(folder)
%BUILD Build the MEX file through which Octave calls optplug, as MATLAB also can.
%
%   optplug.build() puts it beside the package, optplug.build(folder) into a folder of
%   yours, which must be on the path.  It needs a C compiler and, for Octave, mkoctfile:
%   on Debian and Ubuntu, apt install octave-dev.
%
%   Example:
%       folder = tempname();
%       mkdir(folder);
%       optplug.build(folder)
%       delete(fullfile(folder, '*'));
%       rmdir(folder);
%
%   See also optplug.Optimizer.

here = fileparts(fileparts(mfilename('fullpath')));
if nargin < 1
    folder = here;
end
folder = optplug.internal.text(folder, 'folder');
source = fullfile(here, 'optplug_mex.c');
libdir = fullfile(fileparts(here), 'lib');
flags = {['-I' fullfile(fileparts(here), 'include')], ['-L' libdir], '-loptplug'};
if exist('OCTAVE_VERSION', 'builtin')
    output = fullfile(folder, ['optplug_mex.' mexext()]);
    made = [tempname() '.' mexext()]; % mkoctfile rejects a path with blanks
    [~, status] = mkoctfile('--mex', '-o', made, source, flags{:}, ['-Wl,-rpath,' libdir]);
    if status ~= 0
        error('optplug:start', '%s could not be built: see the messages of mkoctfile above', output);
    end
    if ~movefile(made, output)
        delete(made);
        error('optplug:start', '%s could not be written: give optplug.build a folder of yours, and add that to the path', output);
    end
else
    mex(source, flags{:}, ['LDFLAGS=$LDFLAGS -Wl,-rpath,' libdir], '-outdir', folder, '-output', 'optplug_mex');
end
rehash(); % for this session to find it
end
