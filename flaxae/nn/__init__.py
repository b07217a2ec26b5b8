"""Encoders, decoders, heads, and the few layers they need."""
