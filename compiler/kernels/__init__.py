"""Kernel templates: a fusion group in, loop-level Kernel IR out."""
