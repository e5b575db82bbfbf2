function check(status)
%CHECK Raise the library's error if a status is one, and pass on what PyTorch has warned of.

if status < 0
    identifiers = {'invalid', 'handle', 'state', 'start', 'runtime', 'memory', 'nonfinite', 'io'};
    error(['optplug:' identifiers{-status}], '%s', optplug.internal.call('optplug_error'));
end
text = optplug.internal.call('optplug_warning');
if ~isempty(text)
    warning('optplug:warning', '%s', strtrim(text));
end
end
