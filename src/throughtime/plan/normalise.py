"""StepPair -> a graph whose products stand so that they can leave the loop. Each rewrite keeps every value.

A rewrite makes one product into narrower ones that need no rewrite of the same kind, so their number is bounded by
the parts and slices of the graph.
"""

from collections.abc import Callable

from throughtime.capture.graph import StepPair
from throughtime.plan.convolutions import narrow_convolutions, split_convolutions, split_kernel_gradients, sum_biases
from throughtime.plan.depthwise import weigh_windows
from throughtime.plan.editor import GraphEditor
from throughtime.plan.places import Places
from throughtime.plan.pools import reduce_windows
from throughtime.plan.products import (
    join_biases,
    name_outer_products,
    narrow_products,
    split_outer_products,
    split_products,
)
from throughtime.plan.tables import tabulate_products
from throughtime.plan.windows import multiply_windows, split_groups

__all__ = ["normalise"]

REWRITES: tuple[Callable[[GraphEditor, Places], bool], ...] = (
    split_products,
    split_outer_products,
    narrow_products,
    split_convolutions,
    split_kernel_gradients,
    narrow_convolutions,
)
"""Each says whether it changed anything."""


def normalise(pair: StepPair) -> GraphEditor:
    graph = GraphEditor(pair)
    name_outer_products(graph)
    sum_biases(graph)
    join_biases(graph)
    weigh_windows(graph)
    split_groups(graph)
    _tidy(graph)
    changed = True
    while changed:
        places = Places(graph)
        changed = sum(rewrite(graph, places) for rewrite in REWRITES) > 0
    multiply_windows(graph)
    reduce_windows(graph)
    tabulate_products(graph)
    _tidy(graph)
    return graph


def _tidy(graph: GraphEditor) -> None:
    graph.drop_dead()
    graph.merge_equal()
