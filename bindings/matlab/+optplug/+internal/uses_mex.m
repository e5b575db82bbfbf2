function answer = uses_mex()
%USES_MEX Say whether calls go through the MEX file optplug_mex: where there is one on the path.

persistent found
if isempty(found)
    found = exist('optplug_mex', 'file') == 3;
end
answer = found;
end
