"""Whether a run is shown at W&B: what the config, the environment and the machine's keys say."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from typing import Literal

Mode = Literal["online", "offline", "disabled"]

_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}

_log = logging.getLogger(__name__)


def resolve_mode(choice: str) -> Mode:
    """What to do, from the config, the environment, and whether a key is configured."""
    if choice == "disabled":
        return "disabled"
    wish = os.environ.get("WANDB_MODE", "").strip().lower()
    if wish in _MODES:
        return _MODES[wish]
    if wish:
        _log.warning("WANDB_MODE=%s is unknown (expected %s): ignored", wish, ", ".join(_MODES))
    if choice in _MODES:
        return _MODES[choice]
    return "online" if _has_credentials() else "offline"


def _has_credentials() -> bool:
    """Whether W&B would find a key, without asking the network or the user."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    base_url = wandb.setup().settings.base_url
    try:
        # Knows W&B's own rules (netrc, settings files, hosts that stand for each other).
        from wandb.sdk.lib.wbauth import authenticate_session

        found = authenticate_session(
            host=base_url, source="retina_ray", prompt=False, update_session=False
        )
        return found is not None
    except (ImportError, TypeError):  # another version of wandb: that part is not public
        return _in_netrc(base_url)


def _in_netrc(base_url: str) -> bool:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    host = base_url.partition("://")[2].partition("/")[0]
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
