"""Annotations checked at run time; an int is a fine float, as for any other reader of annotations."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
