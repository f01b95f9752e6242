"""People who administer: an OpenID Connect provider vouches for them, a sealed cookie remembers it."""
