"""A tuner for any task with a key, a space and a runner. It knows nothing of operators or kernels."""
