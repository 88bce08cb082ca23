"""A tuner for any task with a key, a space and a runner, which knows nothing of operators.

task.py says what can be tuned, runner.py who runs candidates and what a search is, outcome.py what
comes out.
"""
