function text = kind(value)
%KIND Describe a value by size and class: 'a 3x1 double'.

shape = sprintf('%dx', size(value));
text = ['a ' shape(1:end-1) ' '];
if isnumeric(value) && ~isreal(value)
    text = [text 'complex '];
end
if issparse(value)
    text = [text 'sparse '];
end
text = [text class(value)];
end
