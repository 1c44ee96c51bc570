"""Digital River's signed events: what was spent, and the inbox that keeps every one of them."""
