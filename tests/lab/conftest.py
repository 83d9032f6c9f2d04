"""The lab is imported before diffusers, so that its workaround (lab.compat) is in place."""

import lab  # noqa: F401
