"""The language of operators: types, expressions, and one declaration per operator.

Nothing here knows how graphs are compiled. Importing `tilewright.ops.library` registers every
operator.
"""
