"""A tuner for any task with a key, a space and a runner, which knows nothing of operators."""
