"""Dicts and objects of which only run time knows what they hold: asked, gone through, merged."""

from __future__ import annotations

from collections import OrderedDict, defaultdict

import torch

from tests.script.language import OR_NONE, Programs

program = Programs(OR_NONE)


# Set by a loop that may not run


@program
def asked_after_a_loop(x):
    d = {}
    for v in x:
        d["k"] = v
    return x.sum() + 10 if "k" in d else x.sum() - 1


@program
def asked_after_a_loop_that_may_set_it(x):
    d = {}
    for v in x:
        if v > 2:
            d["k"] = v
    return x * 2 if "k" in d else x


@program
def counted_after_a_loop(x):
    d = {}
    for v in x:
        d["k"] = v
    return x.sum() + len(d)


@program
def default_after_a_loop(x):
    d = {}
    for v in x:
        d.update(k=v)
    return x.sum() + d.get("k", 100.0)


@program
def truth_after_a_while(x):
    d = {}
    s = x.sum()
    while s > 1:
        d["k"] = s
        s = s / 2
    if not d:
        return s + 7
    return s * d["k"]


@program
def compared_with_an_empty_one(x):
    d = {}
    for v in x:
        d["k"] = 1
    return x.sum() + 1 if d == {} else x.sum()


@program
def text_after_a_loop(x):
    d = {}
    for v in x:
        d["mode"] = "fast"
    return x.sum() + 1 if d.get("mode", "slow") == "fast" else x.sum()


@program
def pair_after_a_loop(x):
    d = {}
    for i, v in enumerate(x):
        if "best" not in d or v > d["best"][0]:
            d["best"] = (v, i)
    return d["best"][0] + d["best"][1] if "best" in d else x.sum()


@program
def bisection_with_a_reason(x):
    state = {"lo": x.sum() - 10, "hi": x.sum() + 10}
    while state["hi"] - state["lo"] > 1:
        mid = (state["hi"] + state["lo"]) / 2
        if mid > 2:
            state["hi"] = mid
            state["why"] = mid * 2
        else:
            state["lo"] = mid
    return state["lo"] + state.get("why", 5.0)


# Gone through


@program
def items_gone_through(x):
    d = {}
    s = x.sum()
    while s > 1:
        d["k"] = s
        s = s / 2
    for k, v in d.items():
        s = s + v
    return s


@program
def losses(x):
    found = {"l2": (x**2).sum()}
    positive = x[x > 1]
    if len(positive) > 0:
        found["positive"] = positive.mean()
    if x.sum() > 6:
        found["big"] = x.max()
    total = sum(found.values())
    share = {k: v / total for k, v in found.items()}
    return total, torch.stack([share[k] for k in share]).sum()


@program
def stacked_values(x):
    d = {"a": x.sum()}
    if x.sum() > 5:
        d["b"] = x.sum() * 2
    kept = torch.stack([v * 2 for v in d.values() if v > 0] + [x.sum()])
    return torch.stack(tuple(d.values())), torch.cat([kept, torch.stack(list(d.values()))])


@program
def left_early(x):
    d = {"a": x.sum()}
    if x.sum() > 6:
        d["c"] = x.sum() * 100
    for i, (k, v) in enumerate(d.items()):
        if v + i > 7:
            return v
    return x.sum() - 1


@program
def best_key(x):
    d = {"a": x.sum(), "b": (x**2).sum()}
    if x.sum() > 6:
        d["c"] = x.sum() * 100
    return d[max(d, key=d.get)] + d[min(d, key=lambda k: d[k])]


@program
def in_a_fixed_order(x):
    d = {}
    for v in x:
        if v > 0:
            d["pos"] = v
        else:
            d["neg"] = v
    s = x.sum()
    for k in sorted(d):
        s = s * 2 + d[k]
    return s


def _signed(d):
    out = 0.0
    for k in d:
        if k == "c":
            out = out + d[k]
        else:
            out = out - d[k]
    return out


@program
def gone_through_in_another_function(x):
    d = {"a": x.sum()}
    if x.sum() > 6:
        d["c"] = x.sum() * 100
    return _signed(d) + x.sum()


# Merged


@program
def other_keys_on_each_way(x):
    if x.sum() > 5:
        d = {"a": x.sum(), "b": x.sum() * 2}
    else:
        d = {"a": x.sum()}
    return d["a"] + d.get("b", 3)


@program
def bound_anew(x):
    d = {}
    if x.sum() > 5:
        d["a"] = x.sum()
    if x.sum() > 7:
        d = {"a": x.sum() * 2}
    return d["a"] if "a" in d else x.sum() - 1


@program
def updated(x):
    d, e = {"a": x.sum()}, {}
    if x.sum() > 5:
        e["a"] = x.sum() * 3
    star, union = {**d, **e, "b": x}, d | e
    d.update(e)
    return d["a"] + star["a"] * 2 + union["a"] * 3


@program
def ordered_dict(x):
    d = OrderedDict()
    if x.sum() > 5:
        d["a"] = (x * 2, 3)
    return d["a"][0] * d["a"][1] if "a" in d else x


# Keys chosen at run time, and defaults of their own


@program
def counted_by_kind(x):
    d = {}
    for v in x.tolist():
        kind = "pos" if v > 0 else "neg"
        d[kind] = d.get(kind, 0) + 1
    return d.get("pos", 0) + 10 * d.get("neg", 0) + x.sum()


@program
def summed_by_kind(x):
    d = defaultdict(float)
    for v in x:
        if v > 0:
            d["pos"] += v
        else:
            d["neg"] += v
    return x.sum() + len(d) * 10 + (d["neg"] if "neg" in d else 3.0)


@program
def listed_by_kind(x):
    d = defaultdict(list)
    for v in x:
        d["pos" if v > 0 else "neg"].append(v)
    return x.sum() + len(d["pos"]) * 2 + sum(d["neg"])


# Attributes


class State:
    total = 3.0
    mode = "slow"


@program
def attribute_of_one_branch(x):
    s = State()
    if x.sum() > 5:
        s.a = x.sum()
        s.mode = "fast"
    return s.a * 2 if hasattr(s, "a") else x.sum() * (2 if s.mode == "slow" else 3)


@program
def attribute_of_a_loop(x):
    s = State()
    for v in x:
        previous = getattr(s, "previous", None)
        if previous is not None:
            s.total = s.total + (v - previous).abs()
        s.previous = v
    return x.sum() + s.total + getattr(s, "previous", 50.0)


class Largest(torch.nn.Module):
    def forward(self, x):
        for v in x:
            if not hasattr(self, "seen") or v > self.seen:
                self.seen = v
        out = self.seen if hasattr(self, "seen") else x.sum()
        if hasattr(self, "seen"):
            del self.seen
        return out


program(Largest().eval())
test_one_way, test_every_way = program.tests()
