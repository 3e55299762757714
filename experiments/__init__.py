"""One file per question. `python -m experiments` answers them all."""
