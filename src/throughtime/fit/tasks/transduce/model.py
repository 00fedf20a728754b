"""Options and vocabularies -> an encoder in both directions, and a decoder that attends to what it made."""

from typing import Any

import torch
from torch import Tensor, nn

import throughtime
from throughtime.fit.cells import CellMaker, check_dropout
from throughtime.fit.errors import FitError
from throughtime.fit.nested import map_tensors
from throughtime.fit.options import TransducerOptions
from throughtime.fit.seeds import seed_noise
from throughtime.fit.tasks.transduce.pairs import PairBatch, PairEncoding

__all__ = ["Transducer", "build_transducer"]


class Transducer(nn.Module):
    """Means, for each pair::

    for layer in encoder:
        steps, states[layer] = bidirectional(layer, steps)      # both directions side by side
    state = states
    for token in [end, *target]:
        output, state = decoder(embed(token), state)            # which attends to steps
        logits = readout(output)                                # of the token that follows
    """

    def __init__(
        self,
        tables: tuple[nn.Embedding, nn.Embedding],
        encoder: list[throughtime.RNN],
        decoder: throughtime.AttentionWrapper,
        readout: nn.Linear,
        options: TransducerOptions,
        limit: int,
    ) -> None:
        super().__init__()
        self.source_table, self.target_table = tables
        self.encoder = nn.ModuleList(encoder)
        self.decoder = decoder
        self.readout = readout
        self.dropout = nn.Dropout(options.dropout)
        self.options = options
        self.limit = limit

    def forward(self, batch: PairBatch) -> Tensor:
        """Teacher forcing: the logits [B, T, V] of each target token, given those before it."""
        start = self.encode(batch.source, batch.lengths)
        said = self.dropout(self.target_table(batch.said))
        outputs, _ = throughtime.dynamic_rnn(
            self.decoder, said, batch.target_lengths, start, backend=self.options.backend
        )
        return self.readout(self.dropout(outputs))

    def encode(self, source: Tensor, lengths: Tensor) -> throughtime.AttentionWrapperState:
        """Run the encoder; from now on the decoder attends to its outputs. The state it starts from."""
        steps, states = self.source_table(source), []
        for layer in self.encoder:
            steps, both = layer(self.dropout(steps), sequence_length=lengths)
            states.append(both)
        return self.start(steps, lengths, states)

    def start(
        self, memory: Tensor, lengths: Tensor, states: list[tuple[Any, Any]]
    ) -> throughtime.AttentionWrapperState:
        """states: of each layer, forwards and backwards."""
        self.decoder.attention_mechanism.set_memory(memory, lengths)
        start = self.decoder.initial_state(len(memory), memory.dtype, memory.device)
        joined = [map_tensors(_side_by_side, forwards, backwards) for forwards, backwards in states]
        return start.clone(cell_state=joined[0] if len(joined) == 1 else tuple(joined))

    def decode(self, batch: PairBatch, alignments: bool = False) -> throughtime.Generation:
        options = self.options
        strategy = throughtime.Greedy()
        if options.beam > 1:
            strategy = throughtime.Beam(options.beam, options.length_penalty)
        with torch.no_grad():
            return throughtime.generate(
                self.decoder,
                torch.zeros(len(batch.source), dtype=torch.long, device=batch.source.device),
                0,
                embed=self.target_table,
                output_layer=self.readout,
                initial_state=self.encode(batch.source, batch.lengths),
                strategy=strategy,
                max_steps=self.limit,
                alignments=alignments,
                backend=options.backend,
            )


def build_transducer(options: TransducerOptions, encoding: PairEncoding, seed: int) -> Transducer:
    """The same options and seed give the same first weights."""
    check_dropout(options.dropout)
    if options.units % 2:
        raise FitError(f"--units are shared by the two directions of the encoder: an even number, got {options.units}.")
    seed_noise(seed)
    source, target = (nn.Embedding(len(side), options.embed) for side in (encoding.source, encoding.target))
    make_cell = CellMaker.of(options.cell, options.cell_options)
    encoder, states, width = [], [], options.embed
    for _ in range(options.layers):
        cells = [make_cell(options.units // 2, width) for _ in range(2)]
        outputs, both = zip(*(make_cell.try_out(cell, width, options.backend) for cell in cells))
        width = sum(output.shape[2] for output in outputs)
        states.append(both)
        encoder.append(throughtime.RNN(cells[0], bidirectional=True, cell_bw=cells[1], backend=options.backend))
    cell, features = make_cell.stack(
        options.units, options.embed + options.units, options.layers, options.dropout, options.backend
    )
    attention = _attention(options, features, width)
    decoder = throughtime.AttentionWrapper(cell, attention, attention_layer_size=options.units)
    readout = nn.Linear(options.units, len(encoding.target))
    model = Transducer((source, target), encoder, decoder, readout, options, 2 * encoding.longest + 1)
    _try_out(model, states, width)
    return model


def _attention(options: TransducerOptions, query: int, memory: int) -> throughtime.AttentionMechanism:
    if options.attention == "luong":
        return throughtime.LuongAttention(query, memory_size=memory)
    return throughtime.BahdanauAttention(options.units, memory_size=memory, query_size=query)


def _try_out(model: Transducer, states: list[tuple[Any, Any]], width: int) -> None:
    """One step of the decoder, which lets it make its parameters."""
    try:
        with torch.no_grad():
            start = model.start(torch.zeros(1, 1, width), torch.ones(1, dtype=torch.long), states)
            model.decoder(torch.zeros(1, model.target_table.embedding_dim), start)
    except (ValueError, throughtime.StateError) as error:
        raise FitError(
            f"--cell: the decoder starts from the states of the encoder's two directions side by side, of half the "
            f"units each; {model.options.cell} does not fit together so: {error}"
        ) from error


def _side_by_side(forwards: Tensor, backwards: Tensor) -> Tensor:
    return torch.cat([forwards, backwards], -1)
