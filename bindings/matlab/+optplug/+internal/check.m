function check(status)
%CHECK Raise the library's error if status is negative, and pass on PyTorch's warnings.

if status < 0
    identifiers = {'invalid', 'handle', 'state', 'start', 'runtime', 'memory', 'nonfinite', 'io'};
    error(['optplug:' identifiers{-status}], '%s', optplug.internal.call('optplug_error'));
end
text = optplug.internal.call('optplug_warning');
if ~isempty(text)
    warning('optplug:warning', '%s', strtrim(text));
end
end
