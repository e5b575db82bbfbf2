function need_output(count, usage)
%NEED_OUTPUT Refuse a call on arrays of the caller's that takes no output: they do not change.
if count == 0
    error('optplug:invalid', ['a step of arrays that are given, whose result nobody takes, trains ' ...
        'nothing: write %s'], usage);
end
end
