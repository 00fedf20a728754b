"""A sequence of digits -> the same digits backwards: an encoder, a decoder with attention, and `generate`."""

import torch
from torch import nn

import throughtime

PAD_AND_END, START, WORDS, UNITS = 0, 11, 12, 48


class Reverser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.encoder = throughtime.GRUCell(UNITS, input_size=16)
        self.attention = throughtime.LuongAttention(UNITS, memory_size=UNITS)
        self.decoder = throughtime.AttentionWrapper(
            throughtime.GRUCell(UNITS, input_size=16 + UNITS), self.attention, attention_layer_size=UNITS
        )
        self.to_logits = nn.Linear(UNITS, WORDS)

    def encode(self, ids, lengths):
        """Run the encoder; the decoder looks at its outputs, and starts from its state."""
        memory, state = throughtime.dynamic_rnn(self.encoder, self.embed(ids), lengths)
        self.attention.set_memory(memory, lengths)
        return self.decoder.initial_state(len(ids), memory.dtype, memory.device).clone(cell_state=state)

    def loss(self, ids, lengths, targets):
        start = self.encode(ids, lengths)
        said = torch.cat([torch.full((len(ids), 1), START), targets[:, :-1]], 1)
        outputs, _ = throughtime.dynamic_rnn(self.decoder, self.embed(said), lengths + 1, start)
        weights = throughtime.sequence_mask(lengths + 1, targets.shape[1], dtype=torch.float32)
        return throughtime.sequence_loss(self.to_logits(outputs), targets, weights)


def examples(rows: int):
    lengths = torch.randint(2, 7, (rows,))
    ids, targets = torch.zeros(rows, 6, dtype=torch.long), torch.zeros(rows, 7, dtype=torch.long)
    for row, n in enumerate(lengths.tolist()):
        ids[row, :n] = torch.randint(1, 11, (n,))
        targets[row, :n] = ids[row, :n].flip(0)
    return ids, lengths, targets


def main() -> None:
    torch.manual_seed(0)
    model = Reverser()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(151):
        loss = model.loss(*examples(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3d}   loss {loss:.3f}")
    ids, lengths, targets = examples(100)
    with torch.no_grad():
        start = model.encode(ids, lengths)
        found = throughtime.generate(
            model.decoder,
            START,
            PAD_AND_END,
            embed=model.embed,
            output_layer=model.to_logits,
            initial_state=start,
            max_steps=7,
        )
    right = (nn.functional.pad(found.ids, (0, 7 - found.ids.shape[1])) == targets).all(1).float().mean()
    print(
        f"{ids[0, : lengths[0]].tolist()} -> {found.ids[0, : found.lengths[0] - 1].tolist()};   {right:.0%} all right"
    )
    assert right > 0.5, "most sequences must come out backwards"


if __name__ == "__main__":
    main()
