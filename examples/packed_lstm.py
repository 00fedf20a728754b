"""nn.LSTM over a PackedSequence -> the same numbers from `RNN` over `nn.LSTMCell`, and then over any other cell."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import throughtime


def main() -> None:
    torch.manual_seed(0)
    packed = pack_sequence([torch.randn(n, 3) for n in (7, 2, 5)], enforce_sorted=False)

    lstm = nn.LSTM(3, 8)
    theirs, (h, c) = lstm(packed)

    cell = nn.LSTMCell(3, 8)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in lstm.state_dict().items()})
    rnn = throughtime.RNN(cell)
    ours, (our_h, our_c) = rnn(packed)  # a PackedSequence in, a PackedSequence out

    assert torch.allclose(theirs.data, ours.data, atol=1e-6)
    assert torch.allclose(h[0], our_h, atol=1e-6)
    assert torch.allclose(c[0], our_c, atol=1e-6)
    padded, lengths = pad_packed_sequence(ours, batch_first=True)
    print(f"nn.LSTM and RNN(nn.LSTMCell) agree: {list(padded.shape)}, lengths {lengths.tolist()}")

    # The same call with a cell that nn.LSTM does not have: peepholes, and both directions.
    rnn = throughtime.RNN(throughtime.LSTMCell(8, use_peepholes=True), bidirectional=True)
    outputs, (forwards, backwards) = rnn(packed)
    print(
        f"peepholes, both directions: {list(outputs.data.shape)}, {list(forwards.h.shape)}, {list(backwards.h.shape)}"
    )


if __name__ == "__main__":
    main()
