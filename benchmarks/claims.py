"""A measured figure, its target, and how both are printed and written."""

import json
from dataclasses import asdict, dataclass


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
