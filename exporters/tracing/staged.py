"""What compiled code calls instead of Python's own operators, statements and builtins."""

from exporters.tracing.arguments import given, spread, unpack
from exporters.tracing.bodies import Scope
from exporters.tracing.branches import if_
from exporters.tracing.builtin_functions import call, display
from exporters.tracing.chosen import invoke, returned
from exporters.tracing.iteration import Nested, comprehension, for_, generator, mapping, while_
from exporters.tracing.keys import merged_dicts, with_keys
from exporters.tracing.matching import (
    always,
    as_list,
    is_constant,
    is_instance_of,
    is_mapping,
    is_sequence,
    positional_attribute,
    without_keys,
)
from exporters.tracing.merging import UNBOUND
from exporters.tracing.operators import (
    Operand,
    and_,
    arithmetic,
    assert_,
    beside,
    bind,
    compare,
    getitem,
    ifexp,
    not_,
    or_,
    percent,
    setitem,
    text,
    text_format,
    truth,
    updateitem,
)
from exporters.tracing.ordering import method
from exporters.tracing.own_lists import own
from exporters.tracing.own_sets import own_set
from exporters.tracing.places import setattribute, updateattribute, within

__all__ = [
    "UNBOUND",
    "Nested",
    "Operand",
    "Scope",
    "always",
    "and_",
    "arithmetic",
    "as_list",
    "assert_",
    "beside",
    "bind",
    "call",
    "compare",
    "comprehension",
    "display",
    "for_",
    "generator",
    "getitem",
    "given",
    "if_",
    "ifexp",
    "invoke",
    "is_constant",
    "is_instance_of",
    "is_mapping",
    "is_sequence",
    "mapping",
    "merged_dicts",
    "method",
    "not_",
    "or_",
    "own",
    "own_set",
    "percent",
    "positional_attribute",
    "returned",
    "setattribute",
    "setitem",
    "spread",
    "text",
    "text_format",
    "truth",
    "unpack",
    "updateattribute",
    "updateitem",
    "while_",
    "with_keys",
    "within",
    "without_keys",
]  # fmt: skip
