function answer = uses_mex()
%USES_MEX Return whether calls go through the MEX file optplug_mex, which they do if it is on the path.

persistent found
if isempty(found)
    answer = exist('optplug_mex', 'file') == 3;
    if ~answer && exist('OCTAVE_VERSION', 'builtin')
        return % optplug.build may still make it
    end
    found = answer;
end
answer = found;
end
