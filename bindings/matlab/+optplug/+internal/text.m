function value = text(value, name)
%TEXT Return an argument that is text, a MATLAB string as well, as a char row.

if isa(value, 'string') && isscalar(value)
    value = char(value);
end
if ~ischar(value) || size(value, 1) > 1
    optplug.internal.refuse(name, 'text', value);
end
end
