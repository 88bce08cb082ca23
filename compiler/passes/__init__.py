"""Graph to graph rewrites, and the list of them in order."""
