"""Write a log for which no recipe was tuned: a user is a function of the installed Python code, an item is a token.

    python benchmarks/code_log.py --out DIR/code.parquet

The functions are those of Python's library and of the installed packages, without copies, with at least 30 tokens. The
log has every fourth one, so it depends on what is installed. benchmarks/hours.py studies it.
"""

import argparse
import ast
import io
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

import polars as pl

TOKENS = (tokenize.NAME, tokenize.OP, tokenize.NUMBER)
LEAST, EVERY = 30, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    kept = [tokens for number, tokens in enumerate(functions()) if number % EVERY == 1]
    log = pl.DataFrame({"user_id": range(len(kept)), "item_id": kept}).explode("item_id")
    log.with_columns(timestamp=pl.int_range(pl.len()).over("user_id")).write_parquet(out)
    print(f"{len(kept):,} functions, {len(log):,} tokens, {log['item_id'].n_unique():,} different ones")


def functions() -> Iterator[list[str]]:
    """The tokens of each function."""
    seen = set()
    folders = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    for path in sorted({path for folder in folders for path in Path(folder).rglob("*.py")}):
        try:
            text = path.read_text(encoding="utf8")
            nodes = [
                node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
        except (SyntaxError, UnicodeDecodeError, RecursionError, ValueError):
            continue
        lines = text.splitlines(keepends=True)
        for node in nodes:
            source = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
            if source in seen:
                continue
            seen.add(source)
            try:
                read = [*tokenize.generate_tokens(io.StringIO(source).readline)]
            except (tokenize.TokenError, IndentationError):
                continue
            tokens = [token.string for token in read if token.type in TOKENS]
            if len(tokens) >= LEAST:
                yield tokens


if __name__ == "__main__":
    main()
