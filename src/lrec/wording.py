"""Numbers in sentences."""


def counted(number: float, noun: str) -> str:
    """A number with its noun, in the singular where the number reads 1: 1 run, 1,024 targets, 0.5 epochs."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
    return f"{shown} {noun}" if shown == "1" else f"{shown} {noun}s"
