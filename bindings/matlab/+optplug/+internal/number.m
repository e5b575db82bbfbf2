function value = number(value, name)
%NUMBER Return an argument as a double, or raise an error if it is not one real number.

if ~(isnumeric(value) || islogical(value)) || ~isscalar(value) || ~isreal(value)
    optplug.internal.refuse(name, 'a real number', value);
end
value = double(full(value));
end
