"""What another configuration would have made of the same requests: replay with the code that decides.

`traffic` says what was asked (recorded decisions, or a public trace), `profiles` how endpoints are, `world` what an
endpoint would have answered, `replay` sends the traffic through one configuration, `comparison` sets two such runs
side by side, and `run` does all of it.
"""
