"""Kernel IR to machine code, one package per kind of target."""
