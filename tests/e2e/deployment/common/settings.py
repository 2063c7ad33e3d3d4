"""Settings of the deployment, from the environment."""

import os

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost")
SHELF_FOLDER = os.environ.get("SHELF_FOLDER")
