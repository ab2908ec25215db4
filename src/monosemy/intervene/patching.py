"""Activation patching over features and error terms: exact, first-order, integrated gradients.

A run on one side of a minimal pair is given, at some nodes, what they hold on the other side; the
effect is what that does to a metric of the next token. What is not patched stays as the receiving
run has it, its error term included.

A site is linear in its nodes, y = z W_dec + b_dec + err, and nothing before it changes when it
alone is patched. So one node's patch is a constant added at the site, (z'_i - z_i) d_i; its
first-order effect is that times dm/dy, the plain model's gradient, which reaches earlier sites past
the dictionary's encoder as it should (err is constant, x passes through); and moving all nodes of a
site together from one side to the other is a straight line in y, along which integrated gradients
are taken (Marks et al. 2024, arXiv 2403.19647; here at the midpoints of equal steps).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.coders import Code, Dictionary, attach
from monosemy.corpus.minimal_pairs import MinimalPair
from monosemy.errors import UserError
from monosemy.intervene.nodes import (
    ERROR,
    Delta,
    Effects,
    Node,
    NodeEffects,
    Places,
    Site,
    State,
    check_nodes,
    chosen_nodes,
    sites_of,
)
from monosemy.intervene.prompts import Batch, Read, Unequal, tokenise
from monosemy.lm import LM, Edit, Replay
from monosemy.progress import Task

Metric = Literal["logit difference", "log-probability", "kl"]
"""Of the token after the prompt: the answer's logit less the wrong one's; the answer's
log-probability in nats; the divergence of the clean run's distribution from the one now, in nats.
"""
Method = Literal["integrated gradients", "first-order"]
Receiver = Literal["clean", "corrupted"]
Donor = Literal["other side", "zero", "mean"]
"""What a patched node is given: what it holds on the other side of its pair; zero; its mean at that
position, from the end, over the corrupted prompts (over the clean ones, where there are no others).
"""

STEPS = 10
"""Of integrated gradients."""
AT_ONCE = 256
"""Rows of text in one pass."""


class Patching:
    """Minimal pairs in a model, at the sites of some dictionaries."""

    def __init__(
        self,
        lm: LM,
        dictionaries: Sequence[Dictionary | str],
        pairs: Iterable[MinimalPair],
        *,
        metric: Metric = "logit difference",
        receiver: Receiver = "clean",
        donor: Donor | None = None,
        unequal: Unequal = "refuse",
        batch: int = 32,
    ) -> None:
        """Read the pairs, and check that dictionaries fit the model.

        Args:
            lm: the model.
            dictionaries: one a hook point; transcoders too. A hook point by its name stands for
                its neurons.
            pairs: with a corrupted side or without.
            metric: what effects are measured in.
            receiver: which side's run is patched, with what the other side holds: `clean` asks
                what is needed for the answer, `corrupted` what is enough.
            donor: what patched nodes are given; None: the other side, or zero where there is none.
            unequal: pairs whose prompts have different numbers of tokens, see `tokenise`.
            batch: pairs in one pass.

        Raises:
            UserError: as `tokenise` and `attach`; two dictionaries at one place, an unknown
                metric, or one that needs what the pairs lack.
        """
        self.lm, self.metric, self.receiver, self.batch = lm, metric, receiver, batch
        for asked, kind in ((metric, Metric), (receiver, Receiver), (donor, Donor)):
            if asked not in (None, *get_args(kind)):
                raise UserError(f"no `{asked}`", f"allowed: {', '.join(get_args(kind))}")
        self.sites = sites_of(lm, dictionaries)
        self.prompts = tokenise(lm, pairs, unequal)
        one_sided = self.prompts.corrupted is None
        self.donor = donor or ("zero" if one_sided else "other side")
        self._check_sides()
        for dictionary in dictionaries:
            if isinstance(dictionary, Dictionary) and dictionary.belongs_to_model:
                with lm.unedited():
                    attach(dictionary, lm)

    def _check_sides(self) -> None:
        if self.metric == "logit difference" and self.prompts.wrong is None:
            raise UserError(
                "a logit difference takes a wrong answer, and the pairs have none",
                "measure the answer's log-probability",
            )
        if self.prompts.corrupted is None:
            if self.receiver == "corrupted":
                raise UserError("there is no corrupted run to patch", "patch the clean one")
            if self.donor == "other side":
                raise UserError("the pairs have no other side", "take zero or the mean")

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def values(self) -> Float[Tensor, " pairs"]:
        """The metric of the receiving runs as they are."""
        return self._gather(lambda runs: runs.value)

    @cached_property
    def donor_values(self) -> Float[Tensor, " pairs"]:
        """The metric of the runs on the other side.

        Raises:
            UserError: there is no other side.
        """
        if self.prompts.corrupted is None:
            raise UserError("the pairs have no corrupted side", "nodes are set to zero instead")

        def other(runs: Runs) -> Tensor:
            read = runs.batch.clean if self.receiver == "corrupted" else runs.batch.corrupted
            assert read is not None
            logits = self.lm.logits(read.tokens, attention_mask=read.mask, last=1)
            return runs.measure(logits[:, -1])

        return self._gather(other)

    def mean_states(self, places: Places) -> dict[str, State]:
        """Return what sites hold on average at the positions of rows."""
        found = {}
        for name, (y, z) in self._means.items():
            mine = z[places.position]
            found[name] = State(y[places.position], Code.from_mask(mine, mine != 0))
        return found

    @cached_property
    def _means(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Each site's mean of what it explains, [time, d_out], and of its code, [time, width]."""
        time = max(map(len, [*self.prompts.clean, *(self.prompts.corrupted or [])]))
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        count = torch.zeros(time, device=self.lm.device)
        for batch in self.prompts.batches(self.lm, self.batch):
            side = batch.corrupted or batch.clean
            states, _ = _read_states(self.lm, self.sites, side, batch.text)
            line = Places.of(batch.pairs, batch.text).position + time
            count.index_add_(0, line, torch.ones_like(line, dtype=count.dtype))
            for name, (y, code) in states.items():
                if name not in sums:
                    sums[name] = y.new_zeros(time, y.shape[1]), y.new_zeros(time, code.width)
                sums[name][0].index_add_(0, line, y)
                sums[name][1].index_put_((line[code.tokens], code.indices), code.values, True)
        each = count.clamp_min(1)[:, None]
        return {name: (y / each, z / each) for name, (y, z) in sums.items()}

    # --- attribution ------------------------------------------------------------------------

    def attribute(self, method: Method = "integrated gradients", steps: int = STEPS) -> Effects:
        """Return an estimate of every node's effect at every position of every pair.

        `first-order` takes one forward and one backward pass for all sites, and is poor where the
        metric bends on the way; `integrated gradients` takes `steps` of both for each site, from
        the site on, and is complete: a site's effects add up to that of patching all of it, but
        for the size of the steps.

        Raises:
            UserError: an unknown method, steps below 1, or a first-order effect on KL from the
                clean run, where its gradient is zero.
        """
        if method not in get_args(Method):
            raise UserError(f"no method `{method}`", f"allowed: {', '.join(get_args(Method))}")
        if steps < 1:
            raise UserError(f"{steps} steps", "take at least 1; 10 is usual")
        if method == "first-order" and self.metric == "kl" and self.receiver == "clean":
            raise UserError(
                "at the clean run the gradient of KL to it is zero, so is every first-order effect",
                "take integrated gradients, or patch the corrupted run",
            )
        found: list[_Entries] = []
        work = len(self) * (1 if method == "first-order" else len(self.sites))
        with Task("attribution", work, "pairs") as task:
            for runs in self.runs():
                if method == "first-order":
                    gradients = runs.gradients()
                    task.advance(len(runs.batch.pairs))
                for number, (name, delta) in enumerate(runs.deltas.items()):
                    if method == "integrated gradients":
                        g = runs.mean_gradient(delta, steps)
                        task.advance(len(runs.batch.pairs))
                    else:
                        g = gradients[self.sites[name].there]
                    found.append(_entries(number, delta, g, runs.places))
        columns = [torch.cat(column).cpu() for column in zip(*found, strict=True)]
        return Effects(tuple(self.sites), len(self), *columns)

    # --- exact ------------------------------------------------------------------------------

    def exact(self, nodes: Iterable[Node]) -> NodeEffects:
        """Return the effects of patching nodes, each alone: its pass from its site on.

        A node without a position is patched at all of them at once. Pairs in which it is the same
        on both sides need no pass.

        Raises:
            UserError: a site, feature or position that there is not.
        """
        asked = list(dict.fromkeys(nodes))
        check_nodes(asked, self.sites)
        by_site: dict[str, list[int]] = defaultdict(list)
        for number, node in enumerate(asked):
            by_site[node.site].append(number)
        effects = torch.zeros(len(asked), len(self))
        with Task("patching", len(asked) * len(self), "patches") as task:
            for runs in self.runs():
                for name, numbers in by_site.items():
                    some = [asked[number] for number in numbers]
                    found = runs.each_alone(runs.deltas[name], some).cpu()
                    effects[torch.tensor(numbers)[:, None], runs.batch.pairs] = found
                    task.advance(found.numel())
        return NodeEffects(asked, effects.mean(1), effects.abs().mean(1))

    def patched(self, nodes: Iterable[Node], *, others: bool = False) -> Float[Tensor, " pairs"]:
        """Return the metric with nodes of any sites patched together, in every pair.

        Sites are encoded anew while the model runs: what is not patched has what it comes to after
        the patches before it.

        Args:
            nodes: which.
            others: patch all nodes but these; of the sites, not of the rest of the model.

        Raises:
            UserError: as `exact`.
        """
        return self.patched_each([(list(nodes), others)])[0]

    def patched_each(
        self, asked: Sequence[tuple[Sequence[Node], bool]]
    ) -> Float[Tensor, "asked pairs"]:
        """Return what `patched` does for each of several sets of nodes; pairs are read once.

        Raises:
            UserError: as `exact`.
        """
        for nodes, _ in asked:
            check_nodes(nodes, self.sites)
        found = torch.zeros(len(asked), len(self))
        with Task("patching", len(asked) * len(self), "pairs") as task:
            for runs in self.runs():
                for number, (nodes, others) in enumerate(asked):
                    found[number, runs.batch.pairs] = runs.together(nodes, others).cpu()
                    task.advance(len(runs.batch.pairs))
        return found

    # --- passes -----------------------------------------------------------------------------

    def runs(self) -> Iterator[Runs]:
        """Yield both sides' runs, batch by batch."""
        for batch in self.prompts.batches(self.lm, self.batch):
            yield Runs.of(self, batch)

    def _gather(self, measure: Callable[[Runs], Tensor]) -> Float[Tensor, " pairs"]:
        found = torch.zeros(len(self))
        for runs in self.runs():
            found[runs.batch.pairs] = measure(runs).cpu()
        return found


_Entries = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Site, pair, position, feature and value of each effect."""


def _entries(number: int, delta: Delta, g: Tensor, places: Places) -> _Entries:
    features, errors = delta.along(g)
    rows = torch.arange(len(errors), device=errors.device)
    row = torch.cat([delta.code.tokens, rows])
    feature = torch.cat([delta.code.indices, torch.full_like(rows, ERROR)])
    value = torch.cat([features, errors])
    kept = value != 0
    row, feature, value = row[kept], feature[kept], value[kept]
    site = torch.full_like(feature, number)
    return site, places.pair[row], places.position[row], feature, value


@dataclass(eq=False)
class Runs:
    """A batch of pairs: the receiving run as it is, and what changes to the donor's."""

    of_all: Patching
    batch: Batch
    read: Read
    """The receiving side."""
    places: Places
    now: dict[str, State]
    then: dict[str, State]
    clean: Float[Tensor, "batch vocab"]
    """Log-probabilities of the clean run, for KL."""
    logits: Float[Tensor, "batch vocab"]
    """Of the receiving run."""

    @classmethod
    def of(cls, patching: Patching, batch: Batch) -> Runs:
        """Run both sides, as far as they are needed."""
        lm, sites, donor = patching.lm, patching.sites, patching.donor
        receiving = batch.clean if patching.receiver == "clean" else batch.corrupted
        giving = batch.corrupted if patching.receiver == "clean" else batch.clean
        assert receiving is not None
        now, logits = _read_states(lm, sites, receiving, batch.text)
        places, clean = Places.of(batch.pairs, batch.text), logits
        if donor == "other side":
            assert giving is not None
            then, other = _read_states(lm, sites, giving, batch.text)
            clean = logits if patching.receiver == "clean" else other
        elif donor == "mean":
            then = patching.mean_states(places)
        else:
            then = {name: site.nothing(len(places.row)) for name, site in sites.items()}
        if patching.metric == "kl" and donor != "other side" and patching.receiver == "corrupted":
            clean = lm.logits(batch.clean.tokens, attention_mask=batch.clean.mask, last=1)[:, -1]
        clean = clean.float().log_softmax(-1)
        return cls(patching, batch, receiving, places, now, then, clean, logits)

    @cached_property
    def value(self) -> Float[Tensor, " batch"]:
        """The metric of the receiving run."""
        return self.measure(self.logits)

    @cached_property
    def deltas(self) -> dict[str, Delta]:
        """What changes at each site."""
        sites = self.of_all.sites
        return {n: Delta.between(site, self.now[n], self.then[n]) for n, site in sites.items()}

    def measure(
        self, logits: Float[Tensor, "rows vocab"], rows: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, " rows"]:
        """Return the metric; `rows` says of which pair of the batch each is, None: each in turn."""
        pick = slice(None) if rows is None else rows
        logits, metric = logits.float(), self.of_all.metric
        if metric == "kl":
            clean = self.clean[pick]
            return (clean.exp() * (clean - logits.log_softmax(-1))).sum(1)
        answer = self.batch.answer[pick, None]
        if metric == "log-probability":
            return logits.log_softmax(-1).gather(1, answer)[:, 0]
        wrong = self.batch.wrong
        assert wrong is not None
        return (logits.gather(1, answer) - logits.gather(1, wrong[pick, None]))[:, 0]

    def gradients(self) -> dict[str, Float[Tensor, "rows d_out"]]:
        """Return the metric's gradient at each hook point that is written to, of the plain run."""
        lm, text = self.of_all.lm, self.batch.text
        found: dict[str, Tensor] = {}
        names = dict.fromkeys(site.there for site in self.of_all.sites.values())
        with lm.edit({name: partial(_keep_graph, found, name) for name in names}):
            logits = lm.logits(
                self.read.tokens, attention_mask=self.read.mask, gradients=True, last=1
            )
            with torch.enable_grad():
                total = self.measure(logits[:, -1]).sum()
            got = torch.autograd.grad(total, list(found.values()))
        return {name: g[text].float() for name, g in zip(found, got, strict=True)}

    def mean_gradient(self, delta: Delta, steps: int) -> Float[Tensor, "rows d_out"]:
        """Return the mean gradient on the line from a site's state now to the donor's."""
        replay = self._replay(delta.site)
        text, batch = self.batch.text, len(self.batch.pairs)
        whole = delta.y.new_zeros(*text.shape, delta.y.shape[1])
        whole[text] = delta.y
        total = torch.zeros_like(whole)
        each = torch.arange(batch, device=text.device)
        shares = (torch.arange(steps, device=text.device) + 0.5) / steps
        for some in shares.split(max(AT_ONCE // batch, 1)):
            rows = each.repeat(len(some))
            by = some.repeat_interleave(batch)
            put: list[Tensor] = []

            moves = by[:, None, None] * whole.repeat(len(some), 1, 1)
            with self.of_all.lm.edit({delta.site.there: partial(_move_leaf, put, moves)}):
                logits = replay.again(rows, gradients=True, last=1)
                with torch.enable_grad():
                    value = self.measure(logits[:, -1], rows).sum()
                (g,) = torch.autograd.grad(value, put[0])
            total += g.float().view(len(some), *whole.shape).sum(0)
        return total[text] / steps

    def each_alone(self, delta: Delta, nodes: Sequence[Node]) -> Float[Tensor, "nodes batch"]:
        """Return the effect of each of a site's nodes in each pair."""
        replay, site = self._replay(delta.site), delta.site
        row, value, direction, node = self.writes(delta, nodes)
        effects = torch.zeros(len(nodes), len(self.batch.pairs), device=row.device)
        of_pair = self.places.row[row]
        runs, where = (node * effects.shape[1] + of_pair).unique(return_inverse=True)
        column = self.places.position[row] + self.batch.text.shape[1]
        directions = torch.cat([site.W_dec, delta.error])
        for first in range(0, len(runs), AT_ONCE):
            mine = (where >= first) & (where < first + AT_ONCE)
            some = runs[first : first + AT_ONCE]
            pairs = some % effects.shape[1]
            added = delta.y.new_zeros(len(some), self.batch.text.shape[1], delta.y.shape[1])
            added.index_put_(
                (where[mine] - first, column[mine]),
                value[mine, None] * directions[direction[mine]],
                accumulate=True,
            )
            with self.of_all.lm.edit({site.there: partial(_add, added)}):
                logits = replay.again(pairs, last=1)[:, -1]
            moved = self.measure(logits, pairs) - self.value[pairs]
            effects.view(-1)[some] = moved
        return effects

    def writes(self, delta: Delta, nodes: Sequence[Node]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what nodes change: row, amount, direction, and which node; error terms by row.

        Directions are the dictionary's, and after them each row's error term.
        """
        code, rows = delta.code, torch.arange(len(delta.y), device=delta.y.device)
        parts = []
        for number, node in enumerate(nodes):
            if node.feature == ERROR:
                row, value = rows, torch.ones_like(rows, dtype=delta.y.dtype)
                direction = delta.site.width + rows
            else:
                hits = (code.indices == node.feature) & (code.values != 0)
                row, value, direction = code.tokens[hits], code.values[hits], code.indices[hits]
            if node.position is not None:
                here = self.places.position[row] == node.position
                row, value, direction = row[here], value[here], direction[here]
            parts.append((row, value, direction, torch.full_like(row, number)))
        row, value, direction, which = (torch.cat(column) for column in zip(*parts, strict=True))
        return row, value, direction, which

    def together(self, nodes: Sequence[Node], others: bool) -> Float[Tensor, " batch"]:
        """Return the metric with nodes of all sites patched, or all the others."""
        lm, time = self.of_all.lm, self.batch.text.shape[1]
        line = self.places.position + time
        edits = []
        for name, site in self.of_all.sites.items():
            chosen = chosen_nodes(nodes, site, range(-time, 0), line.device) ^ others
            if chosen.any():
                edits.append(self._patch(site, self.then[name], chosen, line))
        with lm.edit(*edits):
            logits = lm.logits(self.read.tokens, attention_mask=self.read.mask, last=1)
        return self.measure(logits[:, -1])

    def _patch(self, site: Site, then: State, chosen: Tensor, line: Tensor) -> Mapping[str, Edit]:
        """Return the edit that gives a site's chosen nodes what they hold in the donor's run."""
        inputs: list[Tensor] = []
        write = partial(self._write, site, then, chosen, line, inputs)
        if site.here == site.there:
            return {site.there: write}
        return {site.here: partial(_keep_all, inputs), site.there: write}

    def _write(
        self,
        site: Site,
        then: State,
        chosen: Tensor,
        line: Tensor,
        inputs: list[Tensor],
        y: Tensor,
        tokens: Tensor | None,
    ) -> Tensor:
        x = y if site.here == site.there else inputs.pop()
        text, out = self.batch.text, y.clone()
        delta = Delta.between(site, site.state(x[text], y[text]), then)
        out[text] += delta.of(chosen, line).to(y.dtype)
        return out

    def _replay(self, site: Site) -> Replay:
        """Return the receiving run, to be repeated from a site on."""
        replay = Replay(self.of_all.lm, site.there)
        replay.record(self.read.tokens, self.read.mask, last=1)
        return replay


@torch.no_grad()
def _read_states(
    lm: LM, sites: Mapping[str, Site], side: Read, text: Tensor
) -> tuple[dict[str, State], Float[Tensor, "batch vocab"]]:
    """Return what sites hold at text tokens of a run, and the logits of the next token."""
    found: dict[str, Tensor] = {}
    names = {name for site in sites.values() for name in (site.here, site.there)}
    with lm.edit({name: partial(_keep_text, found, name, text) for name in names}):
        logits = lm.logits(side.tokens, attention_mask=side.mask, last=1)[:, -1]
    states = {n: site.state(found[site.here], found[site.there]) for n, site in sites.items()}
    return states, logits.float()


# --- edits: what is put in comes first --------------------------------------------------------


def _keep_text(
    found: dict[str, Tensor], name: str, text: Tensor, x: Tensor, tokens: Tensor | None
) -> Tensor:
    found[name] = x[text]
    return x


def _keep_all(found: list[Tensor], x: Tensor, tokens: Tensor | None) -> Tensor:
    found.append(x)
    return x


def _keep_graph(found: dict[str, Tensor], name: str, y: Tensor, tokens: Tensor | None) -> Tensor:
    """Keep activations to take a gradient at; the first in a model are where it ends."""
    found[name] = y if y.requires_grad else y.detach().requires_grad_()
    return found[name].clone()  # later code may change it in place (Falcon)


def _move_leaf(put: list[Tensor], by: Tensor, y: Tensor, tokens: Tensor | None) -> Tensor:
    """Move activations, and keep them to take a gradient at."""
    put.append((y.detach() + by.to(y.dtype)).requires_grad_())
    return put[0].clone()


def _add(added: Tensor, y: Tensor, tokens: Tensor | None) -> Tensor:
    return (y + added).to(y.dtype)
