"""What a provider says it was asked for and bills, against the ledger: differences and their causes."""
