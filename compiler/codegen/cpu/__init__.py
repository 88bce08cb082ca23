"""CPUs: Kernel IR to LLVM IR text, object code through llvmlite, linking into this process."""
