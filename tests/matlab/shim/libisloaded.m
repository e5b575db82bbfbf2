function answer = libisloaded(alias)
%LIBISLOADED A stand-in for MATLAB's.

answer = ~isempty(shim_libraries(alias));
end
