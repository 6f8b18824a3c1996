"""What compiled code calls instead of Python's own operators, statements and builtins."""

from exporters.tracing.bodies import Scope
from exporters.tracing.branches import if_
from exporters.tracing.builtin_functions import call
from exporters.tracing.iteration import Nested, comprehension, for_, generator, while_
from exporters.tracing.merging import UNBOUND
from exporters.tracing.operators import (
    Operand,
    and_,
    assert_,
    bind,
    compare,
    getitem,
    ifexp,
    not_,
    or_,
    setitem,
    truth,
    updateitem,
)

__all__ = ["UNBOUND", "Nested", "Operand", "Scope", "and_", "assert_", "bind", "call", "compare",
           "comprehension", "for_", "generator", "getitem", "if_", "ifexp", "not_", "or_",
           "setitem", "truth", "updateitem", "while_"]  # fmt: skip
