"""Views over everything that a compilation made."""
