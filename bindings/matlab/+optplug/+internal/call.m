function varargout = call(name, varargin)
%CALL Call a function of optplug.h.  Results are calllib's: its own, and one for each pointer argument.

if optplug.internal.uses_mex()
    [varargout{1:nargout}] = optplug_mex(name, varargin{:});
else
    [varargout{1:nargout}] = calllib('liboptplug', name, varargin{:});
end
end
