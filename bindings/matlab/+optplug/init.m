function init(options)
%INIT Start Python and PyTorch now rather than at the first optimizer, and set options.
%
%   optplug.init() starts them.  optplug.init('num_threads=1, plans=False') also sets
%   options, which the comment on opt_init in optplug.h lists.  python='...', the
%   environment that has PyTorch, must be set before Python has started.
%
%   Example:
%       optplug.init('num_threads=1')
%
%   See also optplug.Optimizer.

if nargin < 1
    options = '';
end
options = optplug.internal.text(options, 'options');
optplug.internal.start();
optplug.internal.check(optplug.internal.call('optplug_init', options));
end
