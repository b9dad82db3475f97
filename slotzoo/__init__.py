"""slotzoo: object-centric and spatiotemporal state-space models in JAX and Equinox.

Shape checks (jaxtyping + beartype) cover every function of the package at trace time. They cost nothing in a
compiled step, and a function's check is made when it is first called; `SLOTZOO_TYPECHECK=0` in the environment turns
them off.
"""

import os as _os


__version__ = "0.1.0"

if _os.environ.get("SLOTZOO_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook as _install_import_hook

    from slotzoo import typecheck as _typecheck  # noqa: F401  # the hook knows it by name

    # The hook acts on modules imported after it, so it has to stand before any import of ours. It is never
    # removed: submodules are imported when first asked for.
    _install_import_hook("slotzoo", "slotzoo.typecheck.when_called")
