function text = version()
%VERSION Return the version of the loaded library.
%
%   Example:
%       disp(optplug.version())
%
%   See also optplug.describe.

optplug.internal.start();
text = optplug.internal.call('optplug_version');
end
