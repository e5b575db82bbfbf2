classdef Block < handle
    %BLOCK An array in memory that does not move, so that the library can keep a pointer to it.

    properties (SetAccess = private)
        Pointer % for pointer arguments of internal.call
    end

    properties (Access = private)
        Size
        Class
        Bytes
        UsesMex % asking each time would take longer than copying a small array
    end

    methods
        function self = Block(value)
            self.Size = size(value);
            self.Class = class(value);
            width = struct('double', 8, 'single', 4, 'uint8', 1);
            self.Bytes = numel(value) * width.(self.Class);
            self.UsesMex = optplug.internal.uses_mex();
            if self.UsesMex
                self.Pointer = optplug_mex('hold', value);
            else
                self.Pointer = libpointer([self.Class 'Ptr'], value(:));
            end
        end

        function write(self, value)
            if self.UsesMex
                optplug_mex('optplug_copy', self.Pointer, value, self.Bytes);
            else % not Pointer.Value = value, which may move the memory
                calllib('liboptplug', 'optplug_copy', self.Pointer, value, self.Bytes);
            end
        end

        function value = read(self)
            if self.UsesMex
                value = optplug_mex('held', self.Pointer);
            else
                value = self.Pointer.Value;
            end
            value = reshape(value, self.Size);
        end

        function delete(self)
            if self.UsesMex && ~isempty(self.Pointer)
                optplug_mex('release', self.Pointer);
                self.Pointer = [];
            end
        end
    end
end
