function number = group_number(group)
%GROUP_NUMBER Return the number of a parameter group, or refuse it.
number = optplug.internal.number(group, 'group');
if number ~= fix(number)
    optplug.internal.refuse('group', 'a whole number', group);
end
end
