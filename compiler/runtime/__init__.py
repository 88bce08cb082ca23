"""Running programs: native code, memory, threads."""
