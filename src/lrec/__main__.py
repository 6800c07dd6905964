"""`python -m lrec` is the `lrec` command (torchrun and the study start it so)."""

from lrec.cli import main

if __name__ == "__main__":
    main()
