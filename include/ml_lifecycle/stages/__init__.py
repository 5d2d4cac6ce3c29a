"""One module a stage: records in, record out. A finished stage finds its manifest and returns it."""
