"""What a model says of pairs, beside the targets -> exact match, edit distance, BLEU; and a file of it all.

BLEU is sacrebleu's (Post 2018, "A Call for Clarity in Reporting BLEU Scores"), over characters where those are the
tokens, and else with its standard tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from throughtime.fit.data.output import write_columns
from throughtime.fit.tasks.transduce.pairs import PairEncoding, Pairs

__all__ = ["Said", "edit_distance", "write_said"]


@dataclass(frozen=True)
class Said:
    """ids: of each row of `pairs`, in their order, without the end token. loss: mean, of a token of the targets."""

    pairs: Pairs
    encoding: PairEncoding
    ids: list[list[int]]
    scores: list[float]
    loss: float
    beam: int

    @property
    def has_answers(self) -> bool:
        return self.pairs.written.targets is not None

    @property
    def sources(self) -> list[list[str]]:
        return self.pairs.written.sources

    @property
    def targets(self) -> list[list[str]]:
        assert self.pairs.written.targets is not None
        return self.pairs.written.targets

    @cached_property
    def tokens(self) -> list[list[str]]:
        return [[self.encoding.target.tokens[id] for id in row] for row in self.ids]

    @cached_property
    def exact(self) -> np.ndarray:
        """[R]: whether all tokens are right, and there are no others."""
        return np.asarray([said == target for said, target in zip(self.tokens, self.targets)])

    @cached_property
    def edits(self) -> np.ndarray:
        """[R]: tokens to insert, delete or replace."""
        return np.asarray([edit_distance(said, target) for said, target in zip(self.tokens, self.targets)])

    @property
    def exact_match(self) -> float:
        return float(self.exact.mean())

    @property
    def token_errors(self) -> float:
        """Edits a token of the targets."""
        return float(self.edits.sum() / sum(map(len, self.targets)))

    @cached_property
    def bleu(self) -> tuple[float, str]:
        """The score from 0 to 100, and sacrebleu's signature of how it was made."""
        metric = BLEU(tokenize="char" if self.encoding.target.cut_into == "characters" else None)
        said, targets = ([self.encoding.target.join(row) for row in rows] for rows in (self.tokens, self.targets))
        return metric.corpus_score(said, [targets]).score, str(metric.get_signature())


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein's: the fewest insertions, deletions and replacements that make one of the other."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        now = [i]
        for j, y in enumerate(b, start=1):
            now.append(min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (x != y)))
        before = now
    return before[-1]


def write_said(path: Path, said: Said) -> None:
    """Columns: row, source, prediction, score, and where they are known target, exact and edit_distance."""
    join = said.encoding.target.join
    columns = {
        "row": said.pairs.source.rows,
        "source": [said.encoding.source.join(tokens) for tokens in said.sources],
        "prediction": [join(tokens) for tokens in said.tokens],
        "score": said.scores,
    }
    if said.has_answers:
        answers = [join(tokens) for tokens in said.targets]
        columns |= {"target": answers, "exact": said.exact, "edit_distance": said.edits}
    write_columns(path, columns)
