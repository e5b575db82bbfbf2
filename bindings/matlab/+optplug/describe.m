function text = describe()
%DESCRIBE Describe the library: which Python, libpython, PyTorch and devices it uses.
%
%   Example:
%       disp(optplug.describe())
%
%   See also optplug.Optimizer.

optplug.internal.start();
text = optplug.internal.call('optplug_describe', 0);
optplug.internal.check_text(text);
end
