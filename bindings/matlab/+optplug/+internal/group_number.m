function number = group_number(group)
%GROUP_NUMBER Return a parameter group's number, or raise an error if it is none.
number = optplug.internal.number(group, 'group');
if number ~= fix(number)
    optplug.internal.refuse('group', 'a whole number', group);
end
end
