"""The lab: a small Flux-Fill model trained from scratch, and the benches that judge HiLo Token with it."""

from lab.compat import let_wheels_import

let_wheels_import()
