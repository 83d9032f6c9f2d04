"""The lab: a small Flux-Fill model trained from scratch, and the benches that judge HiLo Token with it."""

from lab.compat import declare_missing_operators

declare_missing_operators()
