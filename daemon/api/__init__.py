"""The HTTP routes by topic. Only this package and daemon/http.py know that HTTP exists."""
