"""Strongly connected components against the definition: two nodes lead to each other."""

from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.plan.components import strong_components

graphs = st.integers(1, 7).flatmap(
    lambda n: st.fixed_dictionaries({str(i): st.lists(st.sampled_from([str(j) for j in range(n)])) for i in range(n)})
)


def leads_to(graph):
    """Where each node leads, itself included."""
    reach = {node: {node} for node in graph}
    for _ in graph:
        for node, following in graph.items():
            for other in following:
                reach[node] |= reach[other]
    return reach


@settings(max_examples=100, deadline=None)
@given(graphs)
def test_components_are_what_leads_to_each_other_in_topological_order(graph):
    reach = leads_to(graph)
    components = strong_components(graph)
    assert sorted(node for component in components for node in component) == sorted(graph)
    for component in components:
        node = component[0]
        assert set(component) == {other for other in reach[node] if node in reach[other]}
    for i, component in enumerate(components):
        for earlier in components[:i]:
            assert earlier[0] not in reach[component[0]]


def test_a_chain_as_long_as_a_large_step_needs_no_recursion():
    chain = {str(i): [str(i + 1)] for i in range(5000)} | {"5000": []}
    assert strong_components(chain) == [[str(i)] for i in range(5001)]
