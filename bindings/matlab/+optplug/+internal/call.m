function varargout = call(name, varargin)
%CALL Call a function of optplug.h; return what calllib would: its result, then each pointer argument.

if optplug.internal.uses_mex()
    [varargout{1:nargout}] = optplug_mex(name, varargin{:});
else
    [varargout{1:nargout}] = calllib('liboptplug', name, varargin{:});
end
end
