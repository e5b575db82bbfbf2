function names = list(kind)
%LIST List what PyTorch has, as a cell array of text.
%
%   optplug.list('optimizers'), and so 'schedulers', 'dtypes' and 'devices'.
%   optplug.list('Adam') lists the arguments of one of them, with their defaults.
%
%   Example:
%       names = optplug.list('optimizers');
%       disp(any(strcmp(names, 'AdamW')))
%
%   See also optplug.Optimizer.

kind = optplug.internal.text(kind, 'kind');
optplug.internal.start();
text = optplug.internal.call('optplug_list', kind);
optplug.internal.check_text(text);
names = strsplit(strtrim(text), sprintf('\n'))';
end
