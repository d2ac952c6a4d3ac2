__version__ = "0.1.0"


def __getattr__(name):
    "`spfpn.load` and `spfpn.shipped` are imported when they are asked for: torch takes seconds, and `spfpn --help` needs none of it."
    if name not in ("load", "shipped"): raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spfpn.features import factory
    return getattr(factory, name)
