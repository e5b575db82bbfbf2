classdef libpointer < handle
    %LIBPOINTER A stand-in for MATLAB's lib.pointer: memory of its own, of the type '<class>Ptr'.

    properties (SetAccess = private)
        DataType
        Address = uint64(0)
    end

    properties (Access = private)
        Size = [0 0]
        Bytes = 0
    end

    properties (Dependent)
        Value
    end

    methods
        function self = libpointer(type, value)
            self.DataType = type;
            if ~any(strcmp(type, {'doublePtr', 'singlePtr', 'int64Ptr', 'uint8Ptr'}))
                error('MATLAB:libpointer:InvalidType', 'no pointer type %s here', type);
            end
            self.adopt(value);
        end

        function value = get.Value(self)
            bytes = shim_mex('read', self.Address, self.Bytes);
            value = reshape(typecast(bytes, self.DataType(1:end-3)), self.Size);
        end

        function set.Value(self, value)
            % The memory is replaced, which MATLAB may do.
            self.adopt(value);
        end

        function answer = isNull(self)
            answer = self.Address == 0;
        end

        function delete(self)
            if self.Address ~= 0
                shim_mex('free', self.Address, self.Bytes);
                self.Address = uint64(0);
            end
        end
    end

    methods (Access = private)
        function adopt(self, value)
            if ~isnumeric(value) || ~isreal(value) || ndims(value) > 2
                error('MATLAB:libpointer:IllegalConversion', 'a libpointer takes a real matrix');
            end
            bytes = typecast(cast(value(:)', self.DataType(1:end-3)), 'uint8');
            address = shim_mex('alloc', bytes);
            self.delete();
            self.Address = address;
            self.Size = size(value);
            self.Bytes = numel(bytes);
        end
    end
end
