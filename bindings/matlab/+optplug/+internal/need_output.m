function need_output(count, usage)
%NEED_OUTPUT Raise an error if the result of a step is ignored: the caller's arrays do not change.
if count == 0
    error('optplug:invalid', 'params cannot change in place, so this result would be lost: write %s', usage);
end
end
