function unloadlibrary(alias)
%UNLOADLIBRARY A stand-in for MATLAB's.

library = shim_libraries(alias);
shim_mex('close', library.handle);
shim_libraries(alias, []);
end
