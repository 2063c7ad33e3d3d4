"""A package that the deployment has besides."""
