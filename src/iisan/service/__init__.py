"""HTTP service: recommendations of finished runs, their items, and a page to look at them."""
