"""Provider services: one abstract base class, one file a provider, and the factory."""
