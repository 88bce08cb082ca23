"""Memory planning: live ranges, packing with a certificate, and an independent verifier."""

from .packer import Packing, pack

__all__ = ["Packing", "pack"]
