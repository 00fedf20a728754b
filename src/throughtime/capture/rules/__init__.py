"""What each ATen operator means in a graph: one rule for each name, by family."""

from throughtime.capture.rules import elementwise, indexing, making, products, reductions, resizing, shaping, sorting
from throughtime.capture.rules.table import RULES

__all__ = ["RULES", "elementwise", "indexing", "making", "products", "reductions", "resizing", "shaping", "sorting"]
