"""A finished run -> one page that needs nothing else: measure, draw, fill in the template."""
