"""Importers: other projects' models to graphs."""
