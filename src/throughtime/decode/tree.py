"""Beams -> sequences: tiling rows into beams, and walking back from the last step along the parents.

Source: TensorFlow 1.15, contrib/seq2seq/kernels/beam_search_ops.cc and beam_search_decoder.py.
"""

from typing import Any

import torch
from torch import Tensor

from throughtime._nested import Nested, leaves_with_paths, map_leaves

__all__ = ["gather_paths", "gather_tree", "gather_tree_from_array", "tile_batch", "walk_back"]


def tile_batch(value: Nested, multiplier: int) -> Nested:
    """Every row `multiplier` times, next to each other: [B, ...] -> [B * multiplier, ...] in every leaf.

    >>> import torch, throughtime
    >>> throughtime.tile_batch(torch.tensor([1, 2]), 3)
    tensor([1, 1, 1, 2, 2, 2])
    """
    if isinstance(multiplier, bool) or not isinstance(multiplier, int) or multiplier < 1:
        raise ValueError(f"tile_batch: multiplier must be a whole number of at least 1, got {multiplier!r}.")
    for path, leaf in leaves_with_paths(value, "value"):
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            raise ValueError(f"tile_batch: {path} must be a tensor with rows on its first axis, got {leaf!r}.")
    return map_leaves(lambda leaf: leaf.repeat_interleave(multiplier, 0), value)


def gather_tree(step_ids: Tensor, parent_ids: Tensor, max_sequence_lengths: Any, end_token: int) -> Tensor:
    """The sequence that ends in each beam, found by walking back along the parents::

        beam = k
        for t in reversed(range(max_sequence_lengths[b])):
            output[t, b, k] = step_ids[t, b, beam]
            beam = parent_ids[t, b, beam]

    then `end_token` from the first end token on, and past max_sequence_lengths.

    Args:
        step_ids: [T, B, K], the token that each beam appended at each step.
        parent_ids: [T, B, K], the beam of the step before that it was appended to.
        max_sequence_lengths: [B], of the longest beam of each row.

    Raises:
        ValueError: a parent outside 0 to K - 1 on a path. (TensorFlow lets K pass.)

    >>> import torch, throughtime
    >>> ids, parents = torch.tensor([[[4, 5]], [[6, 7]]]), torch.tensor([[[0, 0]], [[1, 0]]])
    >>> throughtime.gather_tree(ids, parents, [2], end_token=0)[:, 0]
    tensor([[5, 4],
            [6, 7]])
    """
    if step_ids.dim() != 3 or step_ids.shape != parent_ids.shape:
        raise ValueError(
            f"gather_tree: step_ids and parent_ids must both be [steps, batch, beams], got {list(step_ids.shape)} "
            f"and {list(parent_ids.shape)}."
        )
    steps, _, beams = step_ids.shape
    lengths = torch.as_tensor(max_sequence_lengths, device=step_ids.device).clamp(max=steps)
    if lengths.shape != step_ids.shape[1:2]:
        raise ValueError(
            f"gather_tree: max_sequence_lengths must have one entry per row, [{step_ids.shape[1]}], got "
            f"{list(lengths.shape)}."
        )
    paths = walk_back(parent_ids.long(), lengths, beams)
    tokens = step_ids.gather(2, paths)
    in_reach = torch.arange(steps, device=step_ids.device)[:, None, None] < lengths[:, None]
    ended = ((tokens == end_token) & in_reach).long().cumsum(0) > 0
    return torch.where(ended | ~in_reach, end_token, tokens)


def gather_tree_from_array(array: Tensor, parent_ids: Tensor, sequence_length: Tensor) -> Tensor:
    """What each beam left behind at every step -> the same along the path of each final beam.

    Args:
        array: [T, B, K, ...] or [T, B * K, ...]; entry [t, b, k] belongs to beam k as it is *after* step t.
        parent_ids: [T, B, K].
        sequence_length: [B, K]; entries past a beam's length stay where they are.

    Returns:
        shaped like `array`.
    """
    steps, rows, beams = parent_ids.shape
    paths = walk_back(parent_ids.long(), sequence_length.amax(1).clamp(max=steps), beams)
    time = torch.arange(steps, device=array.device)[:, None, None]
    own = torch.arange(beams, device=array.device)
    paths = torch.where(time < sequence_length, paths, own)
    return gather_paths(array.reshape(steps, rows, beams, -1), paths).reshape(array.shape)


def gather_paths(array: Tensor, paths: Tensor) -> Tensor:
    """[T, B, K, M] -> the entries of the beams on the paths [T, B, K]."""
    return array.gather(2, paths.unsqueeze(-1).expand(-1, -1, -1, array.shape[-1]))


def walk_back(parents: Tensor, lengths: Tensor, beams: int) -> Tensor:
    """[T, B, K]: which beam of each step is on the path of each final beam; its own number past the length."""
    own = torch.arange(beams, device=parents.device).expand(parents.shape[1:])
    beam, paths = own, []
    for t in reversed(range(parents.shape[0])):
        paths.append(beam)
        above = parents[t].gather(1, beam)
        reached = (t < lengths)[:, None]
        if t > 0:
            _check_parents(above, reached, t, beams)
        beam = torch.where(reached, above, own) if t > 0 else beam
    return torch.stack(paths[::-1]) if paths else parents


def _check_parents(parents: Tensor, reached: Tensor, t: int, beams: int) -> None:
    wrong = reached & ((parents < 0) | (parents >= beams))
    if wrong.any():
        row = int(wrong.any(1).nonzero()[0])
        raise ValueError(
            f"gather_tree: saw an invalid parent id at step {t}, row {row}: parents lie between 0 and {beams - 1}, "
            f"got {int(parents[wrong][0])}."
        )
