"""The ground floor: errors, records, fingerprints, registries, statistics and the store (no torch)."""
