function refuse(name, wanted, got)
%REFUSE Raise an error that names a wrong argument, what it must be, and its value.

if ischar(got) && size(got, 1) == 1
    shown = ['''' got ''''];
elseif (isnumeric(got) || islogical(got)) && isscalar(got)
    shown = num2str(double(got));
else
    shown = optplug.internal.kind(got);
end
error('optplug:invalid', '%s must be %s, got %s', name, wanted, shown);
end
