"""Small numerical pieces where one backend needs another way, written once for all."""
