classdef Block < handle
    %BLOCK An array in memory that stays where it is, for the library to keep a pointer to.

    properties (SetAccess = private)
        Pointer % what a pointer argument of internal.call takes
    end

    properties (Access = private)
        Size
        Class
        Bytes
    end

    methods
        function self = Block(value)
            self.Size = size(value);
            self.Class = class(value);
            width = struct('double', 8, 'single', 4, 'uint8', 1);
            self.Bytes = numel(value) * width.(self.Class);
            if optplug.internal.uses_mex()
                self.Pointer = optplug_mex('hold', value);
            else
                self.Pointer = libpointer([self.Class 'Ptr'], value(:));
            end
        end

        function write(self, value)
            % Not by Pointer.Value = value, which may move the memory.
            optplug.internal.call('optplug_copy', self.Pointer, value, self.Bytes);
        end

        function value = read(self)
            if optplug.internal.uses_mex()
                value = optplug_mex('held', self.Pointer);
            else
                value = self.Pointer.Value;
            end
            value = reshape(value, self.Size);
        end

        function delete(self)
            if optplug.internal.uses_mex() && ~isempty(self.Pointer)
                optplug_mex('release', self.Pointer);
                self.Pointer = [];
            end
        end
    end
end
