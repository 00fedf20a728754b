"""The classifier of the TensorFlow 1 books, line by line: rows of pixels as steps, a linear layer on the state."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import throughtime

n_steps, n_inputs, n_neurons, n_outputs = 8, 8, 150, 10  # MNIST: 28, 28


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # basic_cell = tf.contrib.rnn.BasicRNNCell(num_units=n_neurons)
        self.basic_cell = throughtime.BasicRNNCell(num_units=n_neurons, input_size=n_inputs)
        self.dense = nn.Linear(n_neurons, n_outputs)

    def forward(self, X):
        # outputs, states = tf.nn.dynamic_rnn(basic_cell, X, dtype=tf.float32)
        _, states = throughtime.dynamic_rnn(self.basic_cell, X, dtype=torch.float32)
        # logits = tf.layers.dense(states, n_outputs)
        return self.dense(states)


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    X = torch.tensor(digits.images / 16, dtype=torch.float32)  # [1797, n_steps, n_inputs]
    y = torch.tensor(digits.target)
    train, test = torch.randperm(len(X)).split([1400, 397])
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for epoch in range(15):
        for batch in train[torch.randperm(len(train))].split(100):
            loss = nn.functional.cross_entropy(model(X[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 7 == 0:
            with torch.no_grad():
                right = (model(X[test]).argmax(1) == y[test]).float().mean()
            print(f"epoch {epoch:2d}   train loss {loss:.3f}   test accuracy {right:.1%}")
    assert right > 0.9, "the classifier must have learned the digits"


if __name__ == "__main__":
    main()
