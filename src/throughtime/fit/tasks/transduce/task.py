"""The task of a transducer: a sequence of tokens for each sequence of tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from throughtime.fit.data.batches import Batches
from throughtime.fit.data.parts import PARTS, Data
from throughtime.fit.options import Options
from throughtime.fit.report.page import Finished
from throughtime.fit.tasks.task import Task
from throughtime.fit.tasks.transduce.model import Transducer, build_transducer
from throughtime.fit.tasks.transduce.pairs import PairEncoding, Pairs, encode_pairs, pad_pairs, read_pairs
from throughtime.fit.tasks.transduce.report import make_page
from throughtime.fit.tasks.transduce.said import Said, write_said
from throughtime.fit.tasks.transduce.sources import absolute_source, read_sequences, source_name
from throughtime.fit.tasks.transduce.training import Decoded, TransducerTraining
from throughtime.fit.words import counted, percent

__all__ = ["Transduce"]

MISTAKES = 8  # that evaluate shows


class Transduce(Task):
    name = "transduce"

    def source_name(self, source: str) -> str:
        return source_name(source)

    def absolute_source(self, source: str) -> str:
        return absolute_source(source)

    def read_data(self, options: Options, encoding: Any = None) -> Data:
        return read_pairs(options.data, encoding)

    def read_all(self, options: Options, encoding: PairEncoding, need_answers: bool) -> Pairs:
        return encode_pairs(read_sequences(options.data, need_answers), encoding)

    def read_encoding(self, known: Mapping[str, Any]) -> PairEncoding:
        return PairEncoding.from_json(known)

    def build_model(self, options: Options, encoding: PairEncoding) -> Transducer:
        return build_transducer(options.model, encoding, options.training.seed)

    def make_training(self, model: Transducer, options: Options, encoding: PairEncoding) -> TransducerTraining:
        model.options = options.model
        return TransducerTraining(model, options.training)

    def make_batches(
        self, part: Pairs, options: Options, seed: int | None = None, rank: int = 0, world: int = 1
    ) -> Batches:
        return Batches(part, options.training.batch, seed, rank, world, collate=pad_pairs)

    def introduce(self, options: Options, data: Data) -> dict[str, str]:
        encoding, model = data.encoding, options.model
        sides = [[data.part(part).source for part in PARTS], [data.part(part).target for part in PARTS]]
        steps = [_span(np.concatenate([table.lengths for table in tables])) for tables in sides]
        counts = " / ".join(f"{len(data.part(part)):,} {part}" for part in PARTS)
        return {
            "data": f"{source_name(options.data.data)}: {steps[0]} {options.data.tokens} to {steps[1]}, vocabularies "
            f"of {len(encoding.source):,} and {len(encoding.target):,}",
            "": f"{counts} pairs",
            "model": f"{model.cell} encoder and decoder, {model.units} units, {counted(model.layers, 'layer')}, "
            f"{model.attention} attention",
        }

    def collect(self, part: Pairs, passes: list[Decoded], options: Options, encoding: PairEncoding) -> Said:
        found = {row: (ids, score) for batch in passes for row, ids, score in zip(batch.rows, batch.ids, batch.scores)}
        ids, scores = zip(*(found[row] for row in range(len(part))))
        loss = sum(batch.loss for batch in passes) / max(sum(batch.units for batch in passes), 1)
        return Said(part, encoding, list(ids), list(scores), loss, options.model.beam)

    def results(self, said: Said) -> dict[str, Any]:
        bleu, signature = said.bleu
        return {
            "test_exact_match": said.exact_match,
            "test_edit_distance": float(said.edits.mean()),
            "test_token_errors": said.token_errors,
            "test_bleu": bleu,
            "test_loss": said.loss,
            "test_sequences": len(said.pairs),
            "beam": said.beam,
            "bleu_signature": signature,
        }

    def headline(self, results: Mapping[str, Any]) -> tuple[str, str]:
        right = round(results["test_exact_match"] * results["test_sequences"])
        figures = f"edit distance {results['test_edit_distance']:.3f}, BLEU {results['test_bleu']:.2f}"
        return (
            f"test exact match {percent(results['test_exact_match'], 2)}",
            f"{right:,} of {results['test_sequences']:,} sequences right, {figures}",
        )

    def tell(self, console: Console, said: Said, in_detail: bool) -> None:
        how = "greedy" if said.beam == 1 else f"beam of {said.beam}"
        bleu, signature = said.bleu
        right = f"{int(said.exact.sum()):,} of {len(said.pairs):,} sequences right"
        exact = f"exact match {percent(said.exact_match, 2)}"
        lines = [
            f"[bold green]{exact}[/bold green]   {right}, {how}; loss {said.loss:.4f}",
            f"edit distance {said.edits.mean():.3f} a sequence, {percent(said.token_errors, 2)} of the tokens",
            f"BLEU {bleu:.2f}   {signature}",
        ]
        for line in lines:
            console.print(line, highlight=False)
        if in_detail and not said.exact.all():
            console.print(_mistakes(said))

    def write(self, path: Path, said: Said) -> None:
        write_said(path, said)

    def report(self, run: Finished) -> str:
        return make_page(run)


def _span(lengths: np.ndarray) -> str:
    shortest, longest = int(lengths.min()), int(lengths.max())
    return f"{longest}" if shortest == longest else f"{shortest}-{longest}"


def _mistakes(said: Said) -> RichTable:
    """The farthest off first."""
    table = RichTable("source", "target", "said", "edits", box=SIMPLE)
    for place in np.argsort(-said.edits, kind="stable")[: min(MISTAKES, int((~said.exact).sum()))]:
        join = said.encoding.target.join
        words = [said.encoding.source.join(said.sources[place]), join(said.targets[place]), join(said.tokens[place])]
        table.add_row(*map(escape, words), str(said.edits[place]))
    return table
