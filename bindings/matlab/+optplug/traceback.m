function text = traceback()
%TRACEBACK Return the Python traceback of the last error; '' if it did not come from Python.
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
