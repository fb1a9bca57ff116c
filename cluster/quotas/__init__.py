"""Quotas: how much a tenant may ask and be answered in a minute, kept in one place for all gateways."""
