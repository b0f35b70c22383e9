"""A package, so that the service ends with its tests, not with all tests of its worker."""
