function names = list(kind)
%LIST List what is available, as a cell array of text.
%
%   optplug.list('optimizers'); also 'schedulers', 'dtypes' and 'devices'.
%   optplug.list('Adam') lists the arguments of an optimizer or scheduler, with defaults.
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
