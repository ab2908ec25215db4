"""How signatures are checked while tests run: an int will do for a float, as for mypy."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
