function text = attribute(handle, name)
%ATTRIBUTE Return a text that is attached to an optimizer, or throw the library's error.

text = optplug.internal.call('optplug_attribute_get', handle, name);
if isempty(text) % either none or an empty text: see whether the next call replaces this error
    optplug.internal.call('optplug_free', -1);
    text = optplug.internal.call('optplug_attribute_get', handle, name);
    if strncmp(optplug.internal.call('optplug_error'), 'opt=-1 ', 7)
        return
    end
end
optplug.internal.check_text(text);
end
