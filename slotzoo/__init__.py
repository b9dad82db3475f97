"""slotzoo: object-centric and spatiotemporal state-space models in JAX and Equinox.

Shape checks (jaxtyping + beartype) cover every function of the package at trace time. They cost nothing in a
compiled step; `SLOTZOO_TYPECHECK=0` in the environment turns them off.
"""

import os as _os


__version__ = "0.1.0"

if _os.environ.get("SLOTZOO_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook as _install_import_hook

    # The hook acts on modules imported after it, so it has to stand before any import of ours. It is never
    # removed: submodules are imported when first asked for.
    _install_import_hook("slotzoo", "beartype.beartype")
