"""What an inference method is: settings with rules, a checked plan, a run of the driver, a posterior.

Derive methods of your own from :class:`ChainMethod` (Markov chains) or :class:`ReplicateMethod` (clouds of
particles); ``docs/extending.md`` takes you through one.
"""

from mcx.methods.chain_method import ChainMethod, ChainPlan
from mcx.methods.method import Method, checked_target
from mcx.methods.replicate_method import Cloud, ReplicateMethod, ReplicatePlan
from mcx.ops.validation import (
    Rule,
    boolean,
    either,
    fraction,
    function,
    instance,
    integer,
    number,
    one_of,
    optional,
    tuple_of,
)
from mcx.results.advice import Advice
from mcx.results.faults import FaultAdvice

__all__ = [
    "Advice",
    "ChainMethod",
    "ChainPlan",
    "Cloud",
    "FaultAdvice",
    "Method",
    "ReplicateMethod",
    "ReplicatePlan",
    "Rule",
    "boolean",
    "checked_target",
    "either",
    "fraction",
    "function",
    "instance",
    "integer",
    "number",
    "one_of",
    "optional",
    "tuple_of",
]
