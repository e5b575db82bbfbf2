function check_text(text)
%CHECK_TEXT Raise the library's error if there is no text, and pass on PyTorch's warnings.

status = 0;
if isempty(text)
    status = optplug.internal.call('optplug_error_status');
end
optplug.internal.check(status);
end
