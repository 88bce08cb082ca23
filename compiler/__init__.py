"""The compiler: graphs, frontends, passes, memory, kernels, code generation, runtime, API."""
