function init(options)
%INIT Start Python and PyTorch now rather than with the first optimizer, with options.
%
%   optplug.init() starts them.  optplug.init('num_threads=1, plans=False')
%   sets options: the comment on opt_init in optplug.h lists them.  python='...',
%   which names the environment that has PyTorch, must come before the start.
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
