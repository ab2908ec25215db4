"""A measured figure, its target, and how both are printed and written."""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Claim:
    """What was measured, and what it should be."""

    name: str
    value: float
    target: float
    unit: str
    higher_is_better: bool

    @property
    def met(self):
        if self.higher_is_better:
            return self.value >= self.target
        return self.value <= self.target


def parser(description, docs=False):
    """Return a parser with the options that all benchmarks have; `--docs` for those with tables."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="less of everything, within a minute")
    made.add_argument("--json", type=Path, help="write the claims here")
    if docs:
        made.add_argument("--docs", type=Path, help="write the tables between this file's marks")
    made.add_argument("--threads", type=int, default=2)
    return made


def report(claims, path=None):
    """Print claims as a table; write them as JSON if a path is given."""
    print(f"\n{'claim':36}{'measured':>12}{'target':>12}")
    for claim in claims:
        sign = ">=" if claim.higher_is_better else "<="
        target = f"{sign} {claim.target:g}"
        print(f"{claim.name:36}{claim.value:12.3f}{target:>12}  {'met' if claim.met else 'missed'}")
    if path is not None:
        path.write_text(
            json.dumps({"claims": [asdict(claim) for claim in claims]}, indent=2) + "\n"
        )


def write_between(path, script, text):
    """Put text between a script's marks in a page."""
    begin, end = f"<!-- {script}: begin -->", f"<!-- {script}: end -->"
    page = path.read_text(encoding="utf-8")
    before, after = page.split(begin)[0], page.split(end)[1]
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
