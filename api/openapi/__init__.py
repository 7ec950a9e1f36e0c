"""The OpenAPI document: written by hand, because the requests are read by hand too, and held true by tests."""
