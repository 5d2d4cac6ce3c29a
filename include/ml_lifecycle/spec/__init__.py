"""Model folders as typed data: ``model.yaml`` and ``contract.yaml``."""
