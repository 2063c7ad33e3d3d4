"""A package of the deployment."""
