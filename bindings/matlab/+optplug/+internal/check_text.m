function check_text(text)
%CHECK_TEXT Raise the library's error if a text is none, and pass on what PyTorch has warned of.

status = 0;
if isempty(text)
    status = optplug.internal.call('optplug_error_status');
end
optplug.internal.check(status);
end
