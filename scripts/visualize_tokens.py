"""Show which tokens of a passage each layer keeps at a length config: an HTML page and a PNG beside it.

    python scripts/visualize_tokens.py --model output/dynamic --question "Who wrote it?" --context passage.txt \\
        --length_config "(315, 251, 242, 159, 142, 33)" --output tokens.html

`--context -` reads the passage from standard input.  A long passage is shown by the window that holds the answer.
"""

import argparse
import sys
from functools import partial
from html import escape
from pathlib import Path
from string import Template

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import quiet_libraries  # noqa: F401  (before transformers)

# isort: split
from transformers.utils import logging as transformers_logging

from ask_qa import read_passage
from benchmark import Contender, measure_latency
from int8_folder import RECIPE_FILE
from length_config import count_macs, parse_length_config, parse_length_ratios
from plots import BLUE, ORANGE, new_figure
from reader import Reader
from token_trace import Trace, trace

PAGE = Template((Path(__file__).parent / "visualize_tokens.html").read_text(encoding="utf-8"))


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of a float reader")
    parser.add_argument("--question", required=True)
    parser.add_argument("--context", required=True, help="text file with the passage; - reads standard input")
    parser.add_argument("--length_config", help='tokens that each layer keeps: "(315, 251, ...)"')
    parser.add_argument("--length_ratios", help='or fractions of the real length: "(0.8, 0.6, ...)"')
    parser.add_argument("--output", type=Path, required=True, help="file of the page, .html; .png beside it")
    args = parser.parse_args(argv)
    if bool(args.length_config) == bool(args.length_ratios):
        parser.error("give one of --length_config and --length_ratios.")
    if args.output.suffix != ".html":
        parser.error(f"--output {args.output} must end in .html.")
    if Path(args.model, RECIPE_FILE).is_file():
        parser.error(f"--model {args.model} holds an INT8 model: name the float model it was made from.")
    return args


def costs(reader: Reader, found: Trace, lengths: tuple[float, ...]) -> dict[str, float]:
    """MACs and milliseconds of this window at the config and at full length, in turn."""
    tokens, config = len(found.pieces), reader.model.config
    full = (tokens,) * config.num_hidden_layers
    calls = {name: partial(Contender(reader.model, at), found.batch) for name, at in (("at", lengths), ("full", full))}
    times = measure_latency(calls)
    macs, full_macs = (count_macs(config, at, tokens) for at in (lengths, full))
    ms, full_ms = (times[name]["latency_ms_median"] for name in ("at", "full"))
    return {"macs": macs, "full_macs": full_macs, "ms": ms, "full_ms": full_ms}


# ---- page ----------------------------------------------------------------------------------------------------------


def page(question: str, found: Trace, lengths: tuple[float, ...], cost: dict[str, float], model: str) -> str:
    """The HTML page: the answer, what it cost, and the window once a layer."""
    alive = list(range(len(found.pieces)))
    sections = []
    for layer, kept in enumerate(found.kept, start=1):
        sections.append(section(layer, found, alive, kept))
        alive = kept
    return PAGE.substitute(
        question=escape(question),
        answer=escape(found.text) or "no answer",
        score=f"{found.score:.2f}",
        model=escape(Path(model).name),
        config=escape(str(lengths)),
        tokens=len(found.pieces),
        macs=f"{cost['macs'] / 1e9:.2f}",
        full_macs=f"{cost['full_macs'] / 1e9:.2f}",
        macs_ratio=f"{100 * cost['macs'] / cost['full_macs']:.0f}",
        ms=f"{cost['ms']:.1f}",
        full_ms=f"{cost['full_ms']:.1f}",
        ms_ratio=f"{100 * cost['ms'] / cost['full_ms']:.0f}",
        layers="\n".join(sections),
    )


def section(layer: int, found: Trace, alive: list[int], kept: list[int]) -> str:
    """The tokens at one layer: kept, dropped here, gone before."""
    alive_set, kept_set, answer = set(alive), set(kept), set(found.answer)
    texts = []
    for number, (before, text) in enumerate(found.pieces):
        state = "kept" if number in kept_set else "dropped" if number in alive_set else "gone"
        classes = state + (" answer" if number in answer else "")
        tag = {"kept": "span", "dropped": "del", "gone": "span"}[state]
        texts.append(f'{escape(before)}<{tag} class="{classes}">{escape(text)}</{tag}>')
    dropped = len(alive) - len(kept)
    share = 100 * len(kept) / len(found.pieces)
    return (
        f"<section><h2>Layer {layer} <small>{len(kept)} of {len(found.pieces)} tokens go on, {dropped} dropped here</small>"
        f'</h2><div class="bar"><i style="width:{share:.1f}%"></i></div><p>{"".join(texts)}</p></section>'
    )


# ---- picture -------------------------------------------------------------------------------------------------------


def draw(path: Path, found: Trace, cost: dict[str, float]) -> None:
    """A row a layer, a column a token: filled while it goes on; the answer's tokens in another colour."""
    figure, (axes,) = new_figure(12)
    figure.set_size_inches(12, 0.45 * len(found.kept) + 1.8)
    rows = [list(range(len(found.pieces))), *found.kept]
    for row, kept in enumerate(rows):
        plain = [(number - 0.5, 1) for number in kept if number not in found.answer]
        axes.broken_barh(plain, (row - 0.4, 0.8), color=BLUE, linewidth=0)
        answer = [(number - 0.5, 1) for number in kept if number in found.answer]
        look = {"facecolor": ORANGE, "edgecolor": "black", "linewidth": 0}  # a hatch has the colour of the edge
        axes.broken_barh(answer, (row - 0.45, 0.9), hatch="////", **look)
        axes.text(len(found.pieces) + 1, row, str(len(kept)), va="center", fontsize=9)
    axes.axvline(found.passage_begins - 0.5, color="black", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), ["input", *(f"layer {n}" for n in range(1, len(rows)))])
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xlim(-1, len(found.pieces) + 0.06 * len(found.pieces))
    axes.set_xlabel("token (the passage begins at the dotted line; at the right: how many go on)")
    share, times = cost["macs"] / cost["full_macs"], cost["full_ms"] / cost["ms"]
    axes.set_title(f"answer hatched; {share:.0%} of the MACs of full length, {times:.2f} times as fast", fontsize=11)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(argv)
    transformers_logging.disable_progress_bar()
    try:
        reader = Reader.from_pretrained(args.model)
    except (OSError, ValueError) as error:
        sys.exit(f"error: --model {args.model} cannot be loaded: {' '.join(str(error).split())}")
    try:
        passage = read_passage(args.context)
        layers = reader.model.config.num_hidden_layers
        if args.length_config:
            lengths = parse_length_config(args.length_config, layers, reader.max_seq_length)
        else:
            lengths = parse_length_ratios(args.length_ratios, layers)
        found = trace(reader, args.question, passage, lengths)
        cost = costs(reader, found, lengths)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(page(args.question, found, lengths, cost, args.model), encoding="utf-8")
        draw(args.output.with_suffix(".png"), found, cost)
    except (OSError, ValueError) as error:  # RunError, DataError, LengthConfigError and PlotError are of these
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(f"{args.output} and {args.output.with_suffix('.png')}: {found.text!r}")


if __name__ == "__main__":
    main()
