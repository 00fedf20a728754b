"""Sequences of numbers or tokens -> a class for each."""
