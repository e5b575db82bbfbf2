function answer = uses_mex()
%USES_MEX Say whether calls go through the MEX file optplug_mex: where there is one on the path.

persistent found
if isempty(found)
    answer = exist('optplug_mex', 'file') == 3;
    if ~answer && exist('OCTAVE_VERSION', 'builtin')
        return % optplug.build may make it yet
    end
    found = answer;
end
answer = found;
end
