"""The ledger: models, the unit of work, and one repository an aggregate. All SQL lives here."""
