"""The graph: blobs, ops, builder, verifier, text form, execution with numpy."""
