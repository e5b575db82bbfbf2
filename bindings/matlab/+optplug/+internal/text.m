function value = text(value, name)
%TEXT Return a text argument, char or string, as a char row, or raise an error if it is none.

if isa(value, 'string') && isscalar(value)
    value = char(value);
end
if ~ischar(value) || size(value, 1) > 1
    optplug.internal.refuse(name, 'text', value);
end
end
