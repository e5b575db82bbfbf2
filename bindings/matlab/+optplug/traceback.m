function text = traceback()
%TRACEBACK Return Python's own account of the last error; '' if Python was not in it.
%
%   Example:
%       try
%           optplug.Optimizer('Adam(lr=-1)');
%       catch
%           disp(optplug.traceback())
%       end
%
%   See also optplug.Optimizer.

optplug.internal.start();
text = optplug.internal.call('optplug_traceback');
end
