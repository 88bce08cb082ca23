"""Compile, call, inspect, save and load: what `import tilewright` offers."""
