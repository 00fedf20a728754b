"""Digits -> the same digits backwards: an encoder, a decoder with attention, and what the decoder looks at."""

import torch

import throughtime

END, START, WORDS, UNITS = 0, 11, 12, 48


class Reverser(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.to_logits = torch.nn.Embedding(WORDS, 16), torch.nn.Linear(UNITS, WORDS)
        self.encoder = throughtime.GRUCell(UNITS, input_size=16)
        self.attention = throughtime.LuongAttention(UNITS, memory_size=UNITS)
        inner = throughtime.GRUCell(UNITS, input_size=16 + UNITS)
        self.decoder = throughtime.AttentionWrapper(inner, self.attention, attention_layer_size=UNITS)

    def encode(self, ids, lengths):
        """Run the encoder; the decoder looks at its outputs, and starts from its state."""
        memory, state = throughtime.dynamic_rnn(self.encoder, self.embed(ids), lengths)
        self.attention.set_memory(memory, lengths)
        return self.decoder.initial_state(len(ids), memory.dtype, memory.device).clone(cell_state=state)

    def loss(self, ids, lengths):
        start, targets = self.encode(ids, lengths), torch.nn.functional.pad(reverse(ids, lengths), (0, 1), value=END)
        said = torch.nn.functional.pad(targets[:, :-1], (1, 0), value=START)
        outputs, _ = throughtime.dynamic_rnn(self.decoder, self.embed(said), lengths + 1, start)
        weights = throughtime.sequence_mask(lengths + 1, targets.shape[1], dtype=torch.float32)
        return throughtime.sequence_loss(self.to_logits(outputs), targets, weights)


def reverse(ids, lengths):
    place = lengths[:, None] - 1 - torch.arange(ids.shape[1])
    return torch.where(place >= 0, ids.gather(1, place.clamp(min=0)), END)


def main() -> None:
    torch.manual_seed(0)
    model = Reverser()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for step in range(151):
        loss = model.loss(torch.randint(1, 11, (128, 6)), torch.randint(2, 7, (128,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3d}   loss {loss:.3f}")
    ids, lengths = torch.randint(1, 11, (100, 6)), torch.randint(2, 7, (100,))
    options = {"embed": model.embed, "output_layer": model.to_logits, "max_steps": 7, "alignments": True}
    found = throughtime.generate(model.decoder, START, END, initial_state=model.encode(ids, lengths), **options)
    right = (torch.nn.functional.pad(found.ids, (0, 6))[:, :6] == reverse(ids, lengths)).all(1).float().mean()
    for given, n, said, looked in zip(ids[:3].tolist(), lengths, found.ids.tolist(), found.alignments.argmax(2) + 1):
        print(f"{given[:n]} -> {said[:n]}, looking at digits {looked[:n].tolist()}")
    print(f"{right:.0%} of {len(ids)} come out backwards")
    assert right > 0.8


if __name__ == "__main__":
    main()
