function value = number(value, name)
%NUMBER Return an argument that is one real number as a double.

if ~(isnumeric(value) || islogical(value)) || ~isscalar(value) || ~isreal(value)
    optplug.internal.refuse(name, 'a real number', value);
end
value = double(full(value));
end
