"""A secret that commands under test have in their environment, and that nothing they write may hold."""

from __future__ import annotations

CANARY = "canary-7f3a91c2e8"
SECRETS = {
    name: CANARY
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "VITLINE_WEBHOOK_URL")
}
