"""The two endpoints that Digital River calls while a shopper checks out."""
