"""Hooks that do nothing, as they come with a deployment that has none of its own."""


def before_processing(vcon_uuid, chain, context):
    """Whether the vCon is worked on."""
    return vcon_uuid


def after_processing(vcon_uuid, chain, context, error=None):
    """What to do at the end."""
