"""The modules behind the short names `physseg.plugins`, `physseg.losses` and `physseg.testing`: re-exports alone.

`new_package` begins a package that needs them.
"""
