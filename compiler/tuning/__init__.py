"""Between compiler and tuner: fusion groups as problems with candidates, and what is known of them.

problem.py turns a group into text that any process can make kernels of; tuned.py brings what was
recorded back into compilations.
"""
