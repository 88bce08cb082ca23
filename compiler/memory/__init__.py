"""Memory planning: live ranges, packing with a certificate, and an independent verifier."""
