"""NVIDIA GPUs: Kernel IR -> Numba CUDA source -> LLVM IR -> PTX -> machine code."""
