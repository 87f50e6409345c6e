"""Provider services: the abstract base class, a module or room for each, and the factory."""
