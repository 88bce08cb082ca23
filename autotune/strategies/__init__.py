"""Strategies, which decide what a tuner runs next: one small file each.

survey.py is what all of them keep: what is known of a space. moves.py says which candidates are
neighbours, expectation.py what the others may still be worth.
"""
