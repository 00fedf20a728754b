"""A finished run -> one page that needs nothing else. What a page says of its task is in tasks/."""
