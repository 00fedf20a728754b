"""Sequences of tokens -> other sequences of tokens."""
