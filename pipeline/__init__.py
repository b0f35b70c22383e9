"""The work itself as plain Python: no Ray anywhere, so that it runs on a bare GPU machine and in a notebook.

    images  ─▶  inference  ─▶  masks          model: what inference runs; types, errors: what travels, what can go wrong

A room's `__all__` names its doors: the modules that other rooms and packages may import.
"""
