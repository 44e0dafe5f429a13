"""Synthetic worlds with exactly known answers, and fakes of the seams; used by the demo, tests, docs and benchmarks.

Import from the modules: `glacier` (a tongue with known motion), `scenes` (an archive of images of it), `pairs` (image
pairs with known displacement), `textures`, and what serves them to tests.
"""
