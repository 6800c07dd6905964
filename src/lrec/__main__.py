"""`python -m lrec` is the `lrec` command (torchrun and studies start it in this way)."""

from lrec.cli import main

if __name__ == "__main__":
    main()
