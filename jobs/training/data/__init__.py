"""Photos and annotations ─▶ samples.

before a run   photo_check: can all be decoded, copies ─▶ split: which photos are held back for validation
each sample    samples (which photo, which random numbers) ─▶ augment (transforms, masks with holes)
first steps    seen_objects ends a run whose samples do not have the objects of the annotations
"""
