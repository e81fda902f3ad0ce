"""Logins of browsers: cookies, the form, OpenID Connect."""
