"""What JAX computes on, and where it keeps compiled programs. JAX takes seconds to import: only when it is needed."""

import os
from typing import Any

from common import UserError


def host() -> Any:
    """The jax.Device of this machine's CPU, on which evaluations run. Raises UserError if JAX_PLATFORMS names what is
    not there, or keeps JAX from this one."""
    import jax

    try:
        return jax.local_devices(backend="cpu")[0]
    except (RuntimeError, AssertionError):  # the latter, without a word, for cuda where there is no GPU
        asked = os.environ.get("JAX_PLATFORMS")
        if not asked:
            raise
        raise UserError(
            f"JAX_PLATFORMS={asked} leaves JAX without a device, or without the CPU, on which evaluations run: "
            f"JAX_PLATFORMS=cuda,cpu has both, and without the variable JAX finds what there is."
        ) from None


def backend() -> str:
    """What trains: cpu, gpu, or tpu. Raises UserError as `host` does."""
    import jax

    host()
    return jax.default_backend()


def keep_compiled_programs() -> None:
    """In ~/.cache/offline-rl-jax, for the next start, unless JAX_COMPILATION_CACHE_DIR names another folder."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/offline-rl-jax"))
        # Small programs too: there are dozens of them, half of what a second start would wait for.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
