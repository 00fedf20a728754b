"""The cheapest cut against all cuts."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.plan.min_cut import FOREVER, Network

edges = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 9)), max_size=16)


def cost(flow_edges, sink_side):
    return sum(c for tail, head, c in flow_edges if tail not in sink_side and head in sink_side)


@settings(max_examples=100, deadline=None)
@given(edges)
def test_no_cut_is_cheaper_and_of_equal_ones_this_is_nearest_to_the_sink(flow_edges):
    network = Network()
    for tail, head, capacity in flow_edges:
        network.add(tail, head, capacity)
    found = network.sink_side(0, 5)
    inner = range(1, 5)
    cuts = [{5, *chosen} for n in range(5) for chosen in combinations(inner, n)]
    cheapest = min(cost(flow_edges, cut) for cut in cuts)
    assert cost(flow_edges, found) == cheapest
    assert all(found <= cut for cut in cuts if cost(flow_edges, cut) == cheapest)


def test_an_edge_that_is_never_cut():
    network = Network()
    network.add("s", "a", FOREVER)
    network.add("a", "b", 3)
    network.add("b", "t", FOREVER)
    assert network.sink_side("s", "t") == {"b", "t"}
